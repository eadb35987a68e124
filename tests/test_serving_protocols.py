"""Other projects' clients at our server and our clients at other projects' servers.

The frames are written and read here by msgpack alone, as those projects do; where `openpi-client` and `vla-eval` are
installed, they themselves are the witnesses.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
from fake_env import BODY, FakeEnv, observation
from serving_fakes import TOKEN, Planner

from vla_agents.agent import load_agent
from vla_agents.errors import ActionError, ConfigError, ConnectionLostError, RemotePolicyError
from vla_agents.serving.arrays import LIMITS
from vla_agents.serving.gr00t import Gr00tServer, find_token
from vla_agents.serving.keys import Keys
from vla_agents.serving.server import PolicyServer, serving
from vla_agents.serving.settings import ServerConfig

OBS = observation()
FRONT, WRIST, STATE = OBS["images"]["front"], OBS["images"]["wrist"], OBS["state"]


# ---- arrays as openpi, StarVLA and vla-eval write them ----------------------------------------------------
def numpy_default(value: Any) -> Any:
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def numpy_hook(found: dict) -> Any:
    for mark, data, dtype, shape in (
        (b"__ndarray__", b"data", b"dtype", b"shape"),
        ("__ndarray__", "data", "dtype", "shape"),
    ):
        if mark in found:
            return np.ndarray(buffer=found[data], dtype=np.dtype(found[dtype]), shape=found[shape])
    return found


class Theirs:
    """A client made of `websockets` and msgpack."""

    def __init__(self, url: str, **headers: str) -> None:
        from websockets.sync.client import connect

        self.ws = connect(url, compression=None, max_size=None, additional_headers=headers)

    def say(self, message: Any) -> None:
        self.ws.send(msgpack.packb(message, default=numpy_default))

    def hear(self) -> Any:
        data = self.ws.recv(timeout=60)
        return data if isinstance(data, str) else msgpack.unpackb(data, object_hook=numpy_hook)

    def ask(self, message: Any) -> Any:
        self.say(message)
        return self.hear()


@pytest.mark.parametrize("path", ["", "/openpi"])
def test_openpi_clients(path):
    with serving(Planner(), ServerConfig(port=0, token=TOKEN)) as server:
        client = Theirs(server.url + path, Authorization=f"Api-Key {TOKEN}")
        assert client.hear()["action_horizon"] == 6
        libero = {
            "observation/image": FRONT,
            "observation/wrist_image": WRIST,
            "observation/state": STATE.astype(float),
            "prompt": "go",
        }
        answer = client.ask(libero)
        assert answer["actions"].shape == (6, 4) and np.allclose(answer["actions"][:, 0], STATE[0])
        assert (
            np.allclose(answer["actions"][:, 2], FRONT[0, 0, 0]) and answer["server_timing"]["infer_ms"] >= 0
        )
        aloha = {
            "images": {"front": np.moveaxis(FRONT, 2, 0), "wrist": np.moveaxis(WRIST, 2, 0)},
            "state": STATE,
            "prompt": "go",
        }
        assert np.array_equal(client.ask(aloha)["actions"], answer["actions"])
        parts = {k: v for k, v in libero.items() if "state" not in k} | {"observation/position": STATE}
        assert np.array_equal(client.ask(parts)["actions"], answer["actions"])
        for wrong, word in (
            ({"observation/wrist_image": WRIST}, "no picture"), ({"prompt": None}, "instruction"),
            ({"observation/image": FRONT[:4]}, "front"), ({"observation/state": np.full(3, np.nan)}, "finite"),
            ({"observation/state": np.zeros(9)}, "3 values"),
        ):  # fmt: skip
            message = wrong | {"prompt": "go"} if "no picture" in word else libero | wrong
            said = client.ask(message)
            assert (
                isinstance(said, str)
                and word in said
                and "/" not in said.replace("observation/", "").split("(")[0]
            )
        assert np.array_equal(client.ask(libero)["actions"], answer["actions"])  # and goes on


def test_names_can_be_given():
    keys = Keys(
        {
            "front": "observation/exterior_image_1_left",
            "wrist": "observation.wrist_image_left",
            "instruction": "what",
        }
    )
    message = {
        "observation/exterior_image_1_left": FRONT, "observation/wrist_image_left": WRIST, "observation/extra": WRIST,
        "state": STATE, "what": "this", "prompt": "not this",
    }  # fmt: skip
    found = keys.observation(message, BODY)
    assert found["instruction"] == "this" and found["images"]["front"] is not None
    assert np.array_equal(found["images"]["wrist"], WRIST)


@pytest.mark.parametrize("path", ["", "/starvla"])
def test_starvla_clients(path):
    with serving(Planner()) as server:
        client = Theirs(server.url + path)
        assert client.hear()["action_chunk_size"] == 6
        example = {"image": [FRONT, WRIST], "lang": "go", "state": STATE[None]}
        flat = {
            "examples": [example, example],
            "unnorm_key": "franka",
            "do_sample": False,
            "use_ddim": True,
            "num_ddim_steps": 10,
        }
        answer = client.ask(flat)
        assert answer["ok"] is True and answer["status"] == "ok" and answer["request_id"] == "default"
        assert answer["type"] == "inference_result" and answer["data"]["actions"].shape == (2, 6, 4)
        routed = client.ask({"type": "infer", "request_id": "r1", "payload": {"examples": [example]}})
        assert routed["request_id"] == "r1" and routed["data"]["actions"].shape == (1, 6, 4)
        assert client.ask({"type": "ping", "request_id": "p"}) == {
            "status": "ok", "ok": True, "type": "ping", "request_id": "p",
        }  # fmt: skip
        assert client.ask({"type": "reset"})["ok"]
        for wrong in (
            {"examples": []}, {"examples": [example | {"image": [FRONT]}]}, {"examples": [example | {"lang": 3}]},
            {"examples": [example | {"state": STATE[None] * np.nan}]}, {"examples": [3]}, {"type": "infer", "payload": 3},
        ):  # fmt: skip
            answer = client.ask(wrong)
            assert answer["ok"] is False and answer["status"] == "error" and answer["error"]["message"], (
                answer
            )


@pytest.mark.parametrize("path", ["", "/vla-eval"])
def test_vla_eval_clients(path):
    planner = Planner()
    with serving(planner) as server:
        client = Theirs(server.url + path)

        def message(kind: str, payload: dict, seq: int) -> dict:
            return {"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0}

        hello = client.ask(message("hello", {"harness_version": "0.8.0", "protocol_version": 1}, 1))
        assert hello["type"] == "hello" and hello["seq"] == 1 and hello["payload"]["protocol_version"] == 1
        assert hello["payload"]["action_spec"]["gripper"]["format"] == "binary_close_positive"
        obs = {"images": {"front": FRONT, "wrist": WRIST}, "task_description": "go", "states": STATE}
        client.say(message("episode_start", {"task": {"name": "x"}}, 2))
        answers = [client.ask(message("observation", obs, seq)) for seq in range(3, 8)]
        assert [a["seq"] for a in answers] == [3, 4, 5, 6, 7] and answers[0]["type"] == "action"
        assert (
            answers[0]["payload"]["actions"].shape == (4,) and len(planner.batches) == 2
        )  # 3 of 6 are carried out
        client.say(message("episode_end", {}, 8))
        client.say(message("episode_start", {}, 9))
        assert client.ask(message("observation", obs, 10))["type"] == "action" and len(planner.batches) == 3
        bad = client.ask(message("observation", obs | {"states": STATE * np.nan}, 11))
        assert bad["type"] in ("error", "action")
        wrong = client.ask(message("observation", {"images": {}}, 12))
        assert wrong["type"] == "error" and wrong["seq"] == 12


# ---- GR00T ------------------------------------------------------------------------------------------------
def npy(array: Any) -> dict:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def from_npy(found: dict) -> Any:
    return np.load(io.BytesIO(found["as_npy"]), allow_pickle=False) if "__ndarray_class__" in found else found


@contextmanager
def gr00t(planner: Planner, **config: Any) -> Iterator[Any]:
    """Asks a GR00T server in a thread of its own."""
    zmq = pytest.importorskip("zmq")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    run = lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)  # noqa: E731
    server = PolicyServer(ServerConfig(port=0, **config), lambda: planner)
    run(server.start())
    side = Gr00tServer(server, 0)
    run(side.start())
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.RCVTIMEO, 60_000)
    socket.connect(side.url)

    def ask(message: Any) -> Any:
        socket.send(message if isinstance(message, bytes) else msgpack.packb(message, default=npy))
        return msgpack.unpackb(socket.recv(), object_hook=from_npy)

    try:
        yield ask
    finally:
        socket.close(0)
        context.term()
        run(side.stop())
        run(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_gr00t_clients_of_both_versions():
    with gr00t(Planner()) as ask:
        assert ask({"endpoint": "ping"})["status"] == "ok"
        older = {"video.front": FRONT[None], "video.wrist": WRIST[None], "state.position": STATE[None],
                 "annotation.human.task_description": ["go"]}  # fmt: skip
        answer = ask({"endpoint": "get_action", "data": older})
        assert answer["action.move"].shape == (6, 3) and answer["action.gripper"].shape == (6, 1)
        newer = {
            "video": {"front": np.stack([FRONT[None]] * 2), "wrist": np.stack([WRIST[None]] * 2)},
            "state": {"position": np.stack([STATE[None]] * 2)},
            "language": {"annotation.human.task_description": [["go"], ["there"]]},
        }
        actions, _ = ask({"endpoint": "get_action", "data": {"observation": newer, "options": None}})
        assert actions["move"].shape == (2, 6, 3) and np.allclose(actions["move"][0], answer["action.move"])
        assert ask({"endpoint": "reset", "data": {"options": None}})["ok"]
        modalities = ask({"endpoint": "get_modality_config"})
        assert modalities["video"]["as_json"]["modality_keys"] == ["front", "wrist"]
        for wrong in (
            {"endpoint": "kill"}, {"endpoint": "get_action", "data": 3}, b"\xc1", b"",
            {"endpoint": "get_action", "data": older | {"video.front": FRONT[None, :4]}},
            {"endpoint": "get_action", "data": {"observation": {"video": 3}}},
            {"endpoint": "get_action", "data": {"observation": newer | {"state": {"position": STATE[None]}}}},
        ):  # fmt: skip
            assert "error" in ask(wrong)
        assert "action.move" in ask({"endpoint": "get_action", "data": older})


def test_gr00t_tokens():
    with gr00t(Planner(), token=TOKEN) as ask:
        assert "Unauthorized" in ask({"endpoint": "ping"})["error"]
        assert "Unauthorized" in ask({"endpoint": "ping", "api_token": TOKEN + "x"})["error"]
        assert "Unauthorized" in ask(b"\xdf\xff\xff\xff\xff")["error"]
        assert ask({"endpoint": "ping", "api_token": TOKEN})["status"] == "ok"


def test_the_token_is_found_without_reading_the_rest():
    big = {"endpoint": "get_action", "data": {"x": [[1] * 1000] * 1000}, "api_token": TOKEN}
    assert find_token(msgpack.packb(big), LIMITS) == TOKEN
    for data in (
        b"",
        b"\x80",
        b"\x81\xa9api_token",
        b"\x81\xa9api_token\x91\x01",
        b"\xc1",
        msgpack.packb({"x": 1}),
        b"\x81\xa9api",
    ):
        assert find_token(data, LIMITS) == ""


# ---- our clients at their servers -------------------------------------------------------------------------
@contextmanager
def their_server(metadata: dict, answer: Any) -> Iterator[str]:
    """A server as openpi's and StarVLA's are, made of `websockets` and msgpack; its messages are kept."""
    from websockets.sync.server import serve

    def handle(ws: Any) -> None:
        ws.send(msgpack.packb(metadata, default=numpy_default))
        for data in ws:
            reply = answer(msgpack.unpackb(data, object_hook=numpy_hook))
            ws.send(reply if isinstance(reply, str) else msgpack.packb(reply, default=numpy_default))

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


def test_our_client_at_a_server_of_openpi():
    heard: list[dict] = []

    def answer(message: dict) -> Any:
        heard.append(message)
        if message["prompt"] == "explode":
            return "Traceback: boom"
        return {
            "actions": np.full((10, 5 if message["prompt"] == "other body" else 4), 0.5),
            "server_timing": {},
        }

    with their_server({}, answer) as url:
        with pytest.raises(ConfigError, match="execute="):
            load_agent(f"openpi+{url}", env=FakeEnv())
        with pytest.raises(ConfigError, match="env="):
            load_agent(f"openpi+{url}", execute=5)
        with load_agent(f"openpi+{url}", env=FakeEnv(), execute=5) as agent:
            for _ in range(6):
                assert np.allclose(agent.act(OBS), 0.5)
            assert len(heard) == 2 and set(heard[0]) == {
                "observation/image", "observation/wrist_image", "observation/state", "prompt",
            }  # fmt: skip
            assert np.array_equal(heard[0]["observation/image"], FRONT)
            with pytest.raises(RemotePolicyError, match="boom"):
                agent.act(OBS | {"instruction": "explode"})
            with pytest.raises(ActionError, match=r"\(10, 5\)"):
                agent.act(OBS | {"instruction": "other body"})
        keys = {"front": "images/top", "position": "joints"}
        with load_agent(f"openpi+{url}", env=FakeEnv(), execute=2, keys=keys) as agent:
            agent.act(OBS)
            assert set(heard[-1]) == {"images/top", "observation/wrist_image", "joints", "prompt"}
        with pytest.raises(ConfigError, match="Did you mean 'front'"):
            load_agent(f"openpi+{url}", env=FakeEnv(), execute=2, keys={"frnt": "x"})


def test_our_client_at_a_server_of_starvla():
    heard: list[dict] = []

    def answer(message: dict) -> Any:
        heard.append(message)
        examples = message["payload"]["examples"]
        if examples[0]["lang"] == "explode":
            return {"status": "error", "ok": False, "error": {"message": "boom"}}
        return {
            "status": "ok",
            "ok": True,
            "data": {"actions": np.full((len(examples), 8, 4), 0.25, np.float32)},
        }

    with their_server({"action_chunk_size": 8, "available_unnorm_keys": ["franka"]}, answer) as url:
        with load_agent(f"starvla+{url}", env=FakeEnv(), unnorm_key="franka", send_state=True) as agent:
            vector = observation(lead=(2,)) | {"instruction": ["a", "b"]}
            assert agent.act(vector).shape == (2, 4) and np.allclose(agent.act(vector), 0.25)
            assert len(heard) == 1 and heard[0]["payload"]["unnorm_key"] == "franka"
            assert heard[0]["payload"]["examples"][1]["state"].shape == (1, 3)
            with pytest.raises(RemotePolicyError, match="boom"):
                agent.act(OBS | {"instruction": "explode"})
        with pytest.raises(ConfigError, match="franka"):
            load_agent(f"starvla+{url}", env=FakeEnv(), unnorm_key="bridge")


def test_our_clients_at_our_server():
    with serving(Planner()) as server:
        for kind, options in (("openpi", {}), ("starvla", {"send_state": True})):
            with load_agent(f"{kind}+{server.url}", env=FakeEnv(), **options) as agent:
                action = agent.act(OBS)
                assert (
                    agent.horizon == 6
                    and np.isclose(action[0], STATE[0])
                    and np.isclose(action[2], FRONT[0, 0, 0])
                )


def test_nobody_there():
    with pytest.raises(ConnectionLostError, match="refused"):
        load_agent("openpi+ws://127.0.0.1:9", env=FakeEnv(), execute=1, patience_s=0)


# ---- the packages themselves ------------------------------------------------------------------------------
def test_the_real_openpi_client():
    client_module = pytest.importorskip(
        "openpi_client.websocket_client_policy", reason="openpi-client is not installed"
    )
    with serving(Planner(), ServerConfig(port=0, token=TOKEN)) as server:
        host, port = server.url.removeprefix("ws://").split(":")
        client = client_module.WebsocketClientPolicy(host, int(port), api_key=TOKEN)
        assert client.get_server_metadata()["action_horizon"] == 6
        message = {
            "observation/image": FRONT,
            "observation/wrist_image": WRIST,
            "observation/state": STATE,
            "prompt": "go",
        }
        assert np.allclose(client.infer(message)["actions"][:, 0], STATE[0])
        with pytest.raises(RuntimeError, match="no picture"):
            client.infer({"prompt": "go"})
        client.reset()
        assert client.infer(message)["actions"].shape == (6, 4)


@pytest.mark.parametrize("path", ["", "/vla-eval"])
def test_the_real_vla_eval_client(path):
    connection = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed")

    async def run(url: str) -> None:
        async with connection.Connection(url + path) as conn:
            assert conn.server_info["model_server"] == "vla-agents"
            await conn.start_episode({"task": {"name": "x"}})
            obs = {"images": {"front": FRONT, "wrist": WRIST}, "task_description": "go", "states": STATE}
            for _ in range(5):
                action = await conn.act(obs)
                assert action["actions"].shape == (4,) and np.isclose(action["actions"][0], STATE[0])
                assert np.isclose(action["actions"][2], FRONT[0, 0, 0])  # through PNG
            await conn.end_episode({})
            with pytest.raises(RuntimeError, match="no picture"):
                await conn.act({"images": {}, "task_description": "go", "states": STATE})

    with serving(Planner()) as server:
        asyncio.run(run(server.url))

"""The policy server and its client: the same actions as beside the policy, whoever else is there."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import gymnasium
import numpy as np
import pytest
from fake_env import BODY, ENV_ID, FakeEnv, observation, with_part
from serving_fakes import TOKEN, Planner, Raw, fake_agent

from vla_agents.agent import load_agent
from vla_agents.errors import (
    ActionError,
    AuthorizationError,
    ConfigError,
    ConnectionLostError,
    EmbodimentMismatchError,
    ObservationError,
    RemotePolicyError,
    ServingError,
    UnknownNameError,
)
from vla_agents.rollout import rollout
from vla_agents.serving.batching import Batcher
from vla_agents.serving.planning import Planned, PlanRequest
from vla_agents.serving.remote import PolicyClient, RemoteAgent
from vla_agents.serving.security import check_token, find_token
from vla_agents.serving.server import serving
from vla_agents.serving.settings import ServerConfig

TESTS = Path(__file__).resolve().parent


def get(url: str, path: str, token: str | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url.replace("ws://", "http://") + path, headers=headers)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# ---- an agent like any other ------------------------------------------------------------------------------
@pytest.mark.parametrize("shared_memory", [True, False])
def test_the_same_actions_as_beside_the_policy(shared_memory):
    env = FakeEnv()
    with (
        serving(fake_agent()) as server,
        load_agent(server.url, env=env, shared_memory=shared_memory) as remote,
    ):
        local = fake_agent()
        assert isinstance(remote, RemoteAgent)
        assert (remote.horizon, remote.default_execute, remote.embodiment) == (6, 3, BODY)
        for seed in (1, 2):
            obs, _ = env.reset(seed=seed)
            for agent in (local, remote):
                agent.reset(seed=seed)
            for _ in range(8):
                action = remote.act(obs)
                assert np.array_equal(action, local.act(obs))
                obs = env.step(action)[0]


def test_a_vector_env_evaluated_over_the_wire():
    envs = gymnasium.make_vec(
        ENV_ID, num_envs=3, vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED},
    )  # fmt: skip
    with serving(fake_agent()) as server, load_agent(server.url, env=envs) as agent:
        results = rollout(envs, agent, range(7))
        local = rollout(envs, fake_agent(), range(7))
    assert [(r.seed, r.success, r.steps) for r in results] == [(r.seed, r.success, r.steps) for r in local]
    assert any(r.success for r in results)


def test_what_is_drawn_follows_the_seed_of_the_slot():
    planner = Planner()
    with serving(planner) as server, RemoteAgent(server.url, execute=1) as agent:
        single = observation()
        agent.reset(seed=5)
        first = [agent.act(single)[1] for _ in range(3)]
        generator = np.random.default_rng(5)
        assert np.allclose(first, [generator.random() for _ in range(3)])
        vector = observation(lead=(2,)) | {"instruction": ["do it", "do it"]}
        agent.reset(seed=[7, 8])
        both = agent.act(vector)[:, 1]
        assert np.allclose(both, [np.random.default_rng(seed).random() for seed in (7, 8)])
        agent.reset(np.array([True, False]), seed=[7, 9])
        again = agent.act(vector)[:, 1]
        assert np.isclose(again[0], both[0]) and not np.isclose(again[1], both[1])


def test_a_prefix_travels():
    planner = Planner()
    with serving(planner) as server, RemoteAgent(server.url) as agent:
        assert agent.continues
        prefix = np.full((2, 4), 0.25, np.float32)
        chunk = agent.plan(observation(), prefix, committed=1)
        assert np.array_equal(chunk[:2], prefix) and planner.committed == [1]


def test_planning_in_the_background_over_the_wire():
    planner = Planner(seconds=0.01)
    with serving(planner) as server:
        with load_agent(server.url, env=FakeEnv(), asynchronous=True) as agent:
            agent.reset(seed=0)
            moved = 0
            for _ in range(400):
                moved += bool(np.any(agent.act(observation())[:3]))
                time.sleep(0.002)
                if agent.report().plans >= 3:
                    break
        assert agent.report().plans >= 3 and moved
    assert any(planner.committed)  # chunks went on from where the arm was going


def test_without_torch():
    code = """if True:
        import sys
        for name in ("torch", "transformers", "scipy", "mujoco", "h5py", "pyarrow", "av"):
            sys.modules[name] = None
        from fake_env import FakeEnv
        import vla_agents
        env = FakeEnv()
        with vla_agents.load_agent(sys.argv[1], env=env) as agent:
            print(agent.act(env.reset(seed=1)[0]).shape)
    """
    with serving(fake_agent()) as server:
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path}
        said = subprocess.check_output([sys.executable, "-c", code, server.url], env=environment, text=True)
    assert said.strip() == "(4,)"


# ---- refusals ---------------------------------------------------------------------------------------------
def test_another_body_is_refused_by_name_on_both_sides():
    other = with_part(BODY, "action", 1, kind="gripper_open_01", low=0.0)
    with serving(fake_agent()) as server:
        with pytest.raises(EmbodimentMismatchError, match=r"gripper.*GripperConvention"):
            RemoteAgent(server.url, embodiment=other)
        raw = Raw(server.url, greet=False)
        answer = raw.ask({"type": "hello", "protocol": 1, "embodiment": other.to_dict()})
        assert answer["code"] == "embodiment" and "gripper" in answer["differences"][0]
        with pytest.raises(ConnectionLostError, match="embodiment"):
            raw.hear()


def bad_observations():
    obs = observation()
    images = obs["images"]
    small = {"front": images["front"][:8], "wrist": images["wrist"]}
    return {
        "missing camera": (obs | {"images": {"front": images["front"]}}, "observation", "wrist"),
        "image size": (obs | {"images": small}, "observation", "front"),
        "image dtype": (
            obs | {"images": images | {"front": images["front"].astype(np.float32)}},
            "observation",
            "front",
        ),
        "image that is a text": (obs | {"images": images | {"front": "x"}}, "observation", "front"),
        "NaN state": (obs | {"state": np.array([0, np.nan, 0], np.float32)}, "observation", "not finite"),
        "infinite state": (obs | {"state": [0.0, 1e300, 0.0]}, "observation", "not finite"),
        "state size": (obs | {"state": np.zeros(7, np.float32)}, "observation", "state"),
        "no state": ({k: v for k, v in obs.items() if k != "state"}, "observation", "state"),
        "state of text": (obs | {"state": ["a", "b", "c"]}, "bad_message", "state"),
        "no instruction": (
            {k: v for k, v in obs.items() if k != "instruction"},
            "bad_message",
            "instruction",
        ),
        "instruction 5": (obs | {"instruction": 5}, "observation", "instruction"),
        "unknown key": (obs | {"instructions": "x"}, "bad_message", "Did you mean 'instruction'"),
        "images are a list": (obs | {"images": []}, "bad_message", "images"),
        "not a map": ("hello", "bad_message", "is a str"),
    }


BAD_MESSAGES = {
    "unknown type": ({"type": "plann"}, "Did you mean 'plan'"),
    "no type": ({"x": 1}, "type"),
    "a list": ([1, 2], "map"),
    "no observations": ({"type": "plan", "observations": []}, "observations"),
    "many observations": ({"type": "plan", "observations": [{}] * 65}, "observations"),
    "unknown key": ({"type": "plan", "observation": {}}, "Did you mean 'observations'"),
    "slots": ({"type": "plan", "observations": [observation()], "slots": [-1]}, "slots"),
    "seeds": ({"type": "plan", "observations": [observation()], "seeds": [1, 2]}, "seeds"),
    "reset of text": ({"type": "reset", "slots": "all"}, "slots"),
    "prefix shape": ({"type": "plan", "observations": [observation()], "prefixes": np.zeros((1, 2, 3))}, "prefixes"),
    "prefix NaN": ({"type": "plan", "observations": [observation()], "prefixes": np.full((1, 2, 4), np.nan)}, "finite"),
    "committed": (
        {"type": "plan", "observations": [observation()], "prefixes": np.zeros((1, 2, 4)), "committed": 3}, "committed",
    ),
    "share nothing": ({"type": "share", "size": 0}, "size"),
    "share all there is": ({"type": "share", "size": 2**50}, "size"),
}  # fmt: skip


def test_what_does_not_fit_is_answered_by_name_and_the_next_request_is_served():
    with serving(Planner()) as server:
        raw = Raw(server.url)
        for name, (obs, code, word) in bad_observations().items():
            answer = raw.ask({"type": "plan", "id": name, "observations": [obs]})
            assert (answer["type"], answer["code"], answer["id"]) == ("error", code, name)
            assert word in answer["message"] + answer["remedy"], answer
        for name, (message, word) in BAD_MESSAGES.items():
            raw.close()
            raw = Raw(server.url)  # a client that sends nothing but faults is sent away
            answer = raw.ask(message | {"id": name} if isinstance(message, dict) else message)
            assert answer["code"] == "bad_message" and word in answer["message"] + answer["remedy"], answer
        assert raw.ask({"type": "plan", "observations": [observation()]})["chunks"].shape == (1, 6, 4)


def test_what_the_client_raises():
    with serving(Planner()) as server, PolicyClient(server.url) as client:
        good = observation()
        for text, error in (("explode", RemotePolicyError), ("nan", RemotePolicyError)):
            with pytest.raises(error, match="server's log") as refusal:
                client.plan([good | {"instruction": text}])
            assert "secret" not in str(refusal.value) and "/home" not in str(refusal.value)
        with pytest.raises(ObservationError, match="state"):
            client.plan([good | {"state": np.zeros(2, np.float32)}])
        assert client.plan([good]).shape == (1, 6, 4)
        assert client.reconnects == 0


def test_a_client_that_sends_nothing_but_faults_is_sent_away():
    with serving(Planner()) as server:
        raw = Raw(server.url)
        with pytest.raises(ConnectionLostError, match="none"):
            for _ in range(100):
                raw.ask(b"\xc1")


def test_options_that_make_no_sense():
    with serving(fake_agent()) as server:
        for options, word in (
            ({"device": "cpu"}, "device"), ({"when_late": "hold"}, "asynchronous"),
            ({"execute": 99}, "horizon"), ({"execute": 2, "ensemble": "act"}, "exclude"), ({"timeout_s": 0}, "timeout"),
            ({"asynchronous": True, "ensemble": "act"}, "ensemble"),
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=word):
                load_agent(server.url, **options)
    with pytest.raises(UnknownNameError, match="Did you mean"):
        load_agent("wx://127.0.0.1:1")
    with pytest.raises(ConfigError, match="no address"):
        RemoteAgent("ws://")
    for options in ({"max_clients": 0}, {"drain_s": -1}, {"root": "openpie"}):
        with pytest.raises((ConfigError, UnknownNameError)):
            ServerConfig(**options)


# ---- who may come in --------------------------------------------------------------------------------------
def test_a_token_is_needed_before_anything():
    with serving(fake_agent(), ServerConfig(port=0, token=TOKEN)) as server:
        for wrong in (None, "another-token-of-that-size", TOKEN + "x", TOKEN[:-1]):
            with pytest.raises(AuthorizationError, match="token"):
                RemoteAgent(server.url, token=wrong, patience_s=0)
        with RemoteAgent(server.url, token=TOKEN) as agent:
            assert agent.act(observation()).shape == (4,)
        Raw(f"{server.url}/?token={TOKEN}").close()
        assert get(server.url, "/metrics")[0] == 401 and get(server.url, "/metrics", TOKEN)[0] == 200
        assert get(server.url, "/health")[0] == 200
        assert TOKEN not in repr(server.config)


def test_tokens_are_not_given_lightly(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="other users"):
        find_token(file)
    file.chmod(0o600)
    assert find_token(file) == TOKEN
    with pytest.raises(ConfigError, match="16"):
        check_token("short")
    monkeypatch.setenv("VLA_AGENTS_TOKEN", TOKEN)
    assert find_token() == TOKEN
    with serving(fake_agent(), ServerConfig(port=0, token=TOKEN)) as server:
        load_agent(server.url).close()  # from the environment


def test_other_addresses_need_a_token():
    with (
        pytest.raises(ConfigError, match="no token"),
        serving(fake_agent(), ServerConfig(host="0.0.0.0", port=0)),
    ):
        pass


def test_web_pages_are_refused():
    with serving(fake_agent()) as server:
        for path in ("/", "/metrics", "/health"):
            assert get(server.url, path, Origin="http://evil.example")[0] == 403
        assert get(server.url, "/admin")[0] == 404


def test_tls(tmp_path):
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key", "-out", tmp_path / "cert"]  # fmt: skip
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    config = ServerConfig(port=0, tls_cert=tmp_path / "cert", tls_key=tmp_path / "key")
    with serving(fake_agent(), config) as server:
        assert server.url.startswith("wss://")
        with RemoteAgent(server.url, ca_file=str(tmp_path / "cert")) as agent:
            assert agent.act(observation()).shape == (4,)
        with pytest.raises(AuthorizationError, match="not trusted"):
            RemoteAgent(server.url, patience_s=0)
    with (
        pytest.raises(ConfigError, match="certificate"),
        serving(fake_agent(), dataclasses.replace(config, tls_cert="no")),
    ):
        pass


def test_a_unix_socket(tmp_path):
    path = tmp_path / "policy.sock"
    with serving(fake_agent(), ServerConfig(unix=path)) as server:
        assert path.stat().st_mode & 0o777 == 0o600
        with load_agent(f"ws+unix://{path}", env=FakeEnv()) as agent:
            assert agent.act(observation()).shape == (4,)
            assert agent.client._memory is not None  # pictures were not sent
        with pytest.raises(ServingError, match="listen"), serving(fake_agent(), ServerConfig(unix=path)):
            pass
        assert server.state == "ready"
    assert not path.exists()


def test_too_many_clients():
    with serving(fake_agent(), ServerConfig(port=0, max_clients=2)) as server:
        agents = [RemoteAgent(server.url) for _ in range(2)]
        with pytest.raises(ServingError, match="full"):
            RemoteAgent(server.url, patience_s=0)
        agents.pop().close()
        with RemoteAgent(server.url, patience_s=30) as third:
            assert third.act(observation()).shape == (4,)
        agents.pop().close()


# ---- batches, and what is answered meanwhile --------------------------------------------------------------
def test_clients_are_planned_for_together_and_one_fault_spoils_nothing():
    planner = Planner()
    with serving(planner, ServerConfig(port=0, batch_wait_s=0.0)) as server, ThreadPoolExecutor(6) as pool:
        clients = [PolicyClient(server.url, shared_memory=False) for _ in range(6)]
        planner.gate = threading.Event()
        planner.entered.clear()
        first = pool.submit(clients[0].plan, [observation()])
        assert planner.entered.wait(60)
        texts = ["do it", "explode", "nan", "do it", "do it"]
        rest = [
            pool.submit(c.plan, [observation() | {"instruction": t}])
            for c, t in zip(clients[1:], texts, strict=True)
        ]
        end = time.monotonic() + 60
        while server.batcher.queued < 5 and time.monotonic() < end:
            time.sleep(0.01)
        planner.gate.set()
        assert first.result(60).shape == (1, 6, 4)
        for future, text in zip(rest, texts, strict=True):
            if text == "do it":
                assert future.result(60).shape == (1, 6, 4)
            else:
                with pytest.raises(RemotePolicyError):
                    future.result(60)
        assert planner.batches[:2] == [1, 5]
        for client in clients:
            client.close()


def test_clients_out_of_step_fall_into_step():
    planner = Planner(seconds=0.05)
    with (
        serving(planner) as server,
        PolicyClient(server.url, shared_memory=False) as one,
        PolicyClient(server.url, shared_memory=False) as two,
        ThreadPoolExecutor(2) as pool,
    ):

        def ask(client: PolicyClient, late: float) -> None:
            time.sleep(late)
            for _ in range(15):
                time.sleep(0.003)
                client.plan([observation()])

        list(pool.map(ask, (one, two), (0.0, 0.03)))
    assert planner.batches.count(2) > 7, planner.batches


def test_a_client_that_asks_seldom_is_not_waited_for():
    batcher, answers, queued = Batcher(wait_s=0.05), SimpleQueue(), []
    batcher.swap(Planner(seconds=0.1))

    def ask(client: str) -> Planned:
        batcher.submit(PlanRequest([observation()], client=client), answers.put)
        return answers.get(timeout=60)

    for _ in range(4):
        ask("seldom")
        queued.append(ask("often").queue_s)
        time.sleep(0.2)
    batcher.close()
    assert min(queued[1:]) < 0.03, queued


def test_a_policy_that_was_replaced_is_let_go_at_once():
    batcher, answers = Batcher(), SimpleQueue()
    old = Planner()
    batcher.swap(old)
    batcher.submit(PlanRequest([observation()]), answers.put)
    assert answers.get(timeout=60).revision == 1
    gone, old = weakref.ref(old), None
    batcher.swap(Planner())
    end = time.monotonic() + 60
    while gone() is not None and time.monotonic() < end:
        time.sleep(0.01)
    batcher.close()
    assert gone() is None


def test_health_and_metrics_answer_while_the_policy_thinks():
    planner = Planner()
    planner.gate = threading.Event()
    with serving(planner) as server, PolicyClient(server.url) as client, ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.plan, [observation()])
        assert planner.entered.wait(60)
        assert get(server.url, "/health") == (200, '{"status": "ready"}\n')
        assert "vla_agents_clients 1" in get(server.url, "/metrics")[1]
        assert not future.done()
        planner.gate.set()
        future.result(60)
        text = get(server.url, "/metrics")[1]
        assert 'vla_agents_requests_total{protocol="vla-agents",outcome="done"} 1' in text
        assert (
            'vla_agents_batch_size_bucket{le="1"} 1' in text
            and "vla_agents_inference_seconds_count 1" in text
        )


def test_a_full_queue_refuses_and_the_client_tries_again():
    planner = Planner()
    planner.gate = threading.Event()
    with serving(planner, ServerConfig(port=0, max_queued=1)) as server, ThreadPoolExecutor(4) as pool:
        clients = [PolicyClient(server.url) for _ in range(4)]
        futures = [pool.submit(client.plan, [observation()]) for client in clients]
        assert planner.entered.wait(60)
        time.sleep(0.3)
        planner.gate.set()
        for future, client in zip(futures, clients, strict=True):
            assert future.result(60).shape == (1, 6, 4)
            client.close()


def test_a_health_check_says_when_it_is_not_ready():
    gate = threading.Event()
    import asyncio

    from vla_agents.serving.server import PolicyServer

    async def run() -> None:
        def load():
            assert gate.wait(60)
            return Planner()

        server = PolicyServer(ServerConfig(port=0), load)
        start = asyncio.ensure_future(server.start())
        while not server.url:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(get, server.url, "/health") == (
            503,
            json.dumps({"status": "loading"}) + "\n",
        )
        with pytest.raises(ServingError, match="loading"):
            await asyncio.to_thread(RemoteAgent, server.url, patience_s=0)
        gate.set()
        await start
        assert (await asyncio.to_thread(get, server.url, "/health"))[0] == 200
        await server.stop()

    asyncio.run(run())


def test_actions_that_are_not_of_that_body():
    class Wrong(Planner):
        def plan_batch(self, observations, *rest):
            return [np.zeros((6, 5), np.float32)] * len(observations)

    with (
        serving(Wrong()) as server,
        PolicyClient(server.url) as client,
        pytest.raises((ActionError, RemotePolicyError)),
    ):
        client.plan([observation()])

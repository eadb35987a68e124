"""`data view`: what the server answers and refuses, and what a browser shows."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_check import ARM, LENGTH, clean, make, moved

from vla_agents.cli import main
from vla_agents.data import Step, create_dataset, open_dataset
from vla_agents.data.view import Content, Viewer
from vla_agents.data.view.content import BLOCK
from vla_agents.errors import ConfigError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def edit(k: int, steps: list[Step]) -> list[Step]:
    if k == 1:
        steps = moved(steps, "state", 17, 1.5)
        steps = [replace(s, intervened=20 < t < 30) for t, s in enumerate(steps)]
        steps = [replace(s, commanded=s.action + 0.2 if 8 < t < 20 else None) for t, s in enumerate(steps)]  # type: ignore[operator]
    return steps


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    path = make(tmp_path_factory.mktemp("view") / "set", edit, "lerobot", words="<b>put</b> it & 'go'")
    found = Viewer(Content(open_dataset(path)))
    found.content.wait()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.close()
    thread.join(timeout=10)


def ask(viewer: Viewer, path: str, *, token: str | None = None, host: str | None = None, method: str = "GET"):
    link = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=20)
    whole = f"/{viewer.token if token is None else token}/{path}"
    link.putrequest(method, whole, skip_host=True)
    link.putheader("Host", f"127.0.0.1:{viewer.port}" if host is None else host)
    link.endheaders()
    answer = link.getresponse()
    body = answer.read()
    link.close()
    return answer, body


def test_page_and_numbers(viewer: Viewer) -> None:
    answer, body = ask(viewer, "")
    assert answer.status == 200 and b"page.js" in body
    assert "default-src 'none'" in (answer.getheader("Content-Security-Policy") or "")
    for name in ("page.js", "curves.js", "page.css"):
        assert ask(viewer, name)[0].status == 200
    about = json.loads(ask(viewer, "data/dataset")[1])
    assert about["episodes"] == 4 and about["names"]["state"] == ["joint_0", "joint_1", "joint_2"]
    shown = json.loads(ask(viewer, "data/episode/1")[1])
    real = open_dataset(viewer.content.reader.path).read(1, images=False)
    assert np.allclose(np.array(shown["action"]).T, real.action, atol=1e-5)
    assert shown["intervened"] == list(range(21, 30)) and shown["other"]["name"] == "commanded"
    assert np.allclose(np.array(shown["other"]["values"]).T, real.commanded, atol=1e-5)
    assert {f["check"] for f in shown["findings"]} == {"state_jump"} and shown["findings"][0]["step"] == 17
    assert np.allclose(shown["time"], real.time - real.time[0], atol=1e-5)


def test_the_picture_of_each_step_is_its_own(viewer: Viewer) -> None:
    truth = open_dataset(viewer.content.reader.path).read(3).images["wrist"]
    for step in (0, 1, BLOCK - 1, BLOCK, LENGTH - 1):
        answer, body = ask(viewer, f"picture/3/1/{step}.jpg")
        assert answer.getheader("Content-Type") == "image/jpeg"
        error = [
            np.abs(np.asarray(Image.open(io.BytesIO(body))).astype(int) - frame).mean() for frame in truth
        ]
        assert error[step] == min(error) < 4  # neighbours may look the same
        assert error[(step + 10) % LENGTH] > error[step] + 2


def test_the_list_comes_in_parts(viewer: Viewer) -> None:
    part = json.loads(ask(viewer, "data/episodes?first=1&count=2")[1])
    assert part["total"] == 4 and [row["episode"] for row in part["rows"]] == [1, 2]
    assert part["rows"][0]["found"] == ["warning"]
    one = json.loads(ask(viewer, "data/episodes?words=PUT")[1])
    assert [row["episode"] for row in one["rows"]] == [2]
    bad = json.loads(ask(viewer, "data/episodes?only=found")[1])
    assert [row["episode"] for row in bad["rows"]] == [1]
    assert json.loads(ask(viewer, "data/episodes?only=no")[1])["total"] == 0


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("", {"token": "wrong"}, 403),
        ("data/dataset", {"token": ""}, 403),
        ("", {"host": "evil.example"}, 421),
        ("data/dataset", {"host": "evil.example:80"}, 421),
        ("", {"host": ""}, 421),
        ("data/episode/4", {}, 404),
        ("data/episode/-1", {}, 404),
        ("data/episode/٣", {}, 404),
        ("picture/0/2/0.jpg", {}, 404),
        ("picture/0/0/40.jpg", {}, 404),
        ("picture/0/0/0.png", {}, 404),
        ("../../../../etc/passwd", {}, 404),
        ("%2e%2e/%2e%2e/etc/passwd", {}, 404),
        ("meta/info.json", {}, 404),
        ("server.py", {}, 404),
        ("data/episodes?first=x", {}, 404),
        ("", {"method": "POST"}, 501),
        ("", {"method": "OPTIONS"}, 501),
    ],
)
def test_what_is_refused(viewer: Viewer, path: str, given: dict[str, str], status: int) -> None:
    path = path.encode("utf-8").decode("latin-1") if path.isascii() else "data/episode/%D9%A3"
    answer, body = ask(viewer, path, **given)
    assert answer.status == status and b"root:" not in body
    assert answer.getheader("Access-Control-Allow-Origin") is None


def test_only_this_machine_is_served(viewer: Viewer) -> None:
    assert viewer.server_address[0] == "127.0.0.1" and len(viewer.token) >= 20
    with pytest.raises(ConfigError, match="cannot be used"):
        Viewer(Content(viewer.content.reader, check=False), viewer.port)


def test_a_damaged_episode_does_not_end_the_server(tmp_path: Path) -> None:
    path = make(tmp_path / "set", kind="lerobot")
    video = sorted((path / "videos").rglob("*.mp4"))[1]
    video.write_bytes(video.read_bytes()[:100])
    content = Content(open_dataset(path), check=False)
    found = Viewer(content)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    try:
        assert ask(found, "picture/1/0/0.jpg")[0].status == 422
        assert ask(found, "picture/0/0/0.jpg")[0].status == 200
        assert ask(found, "data/episode/1")[0].status == 200
    finally:
        found.shutdown()
        found.close()
        thread.join(timeout=10)


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "set", edit)
    out = tmp_path / "page"
    assert main(["data", "view", str(path), "--export", str(out), "--episode", "1"]) == 0
    assert len(list((out / "picture" / "1").rglob("*.jpg"))) == 2 * LENGTH
    text = (out / "exported.js").read_text()
    content = json.loads(text.removeprefix("window.EXPORTED = ").removesuffix(";\n"))
    assert (
        content["episode"]["findings"][0]["check"] == "state_jump"
        and "exported.js" in (out / "index.html").read_text()
    )
    assert main(["data", "view", str(path), "--export", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err
    if CHROMIUM:
        shown = dom((out / "index.html").as_uri() + "#1:17")
        assert 'data-step="17"' in shown and "Episode 1: pick up the cup" in shown


def test_thousands_of_episodes_are_listed_by_the_page(tmp_path: Path) -> None:
    body = replace(ARM, cameras=())
    with create_dataset(tmp_path / "set", body, "lerobot", durable=False) as writer:
        for k in range(30):
            writer.begin(f"task {k}")
            for step in clean(k, 3):
                writer.add(replace(step, images={}))
            writer.save(True)
    content = Content(open_dataset(tmp_path / "set"), check=False)
    content.lengths = np.tile(content.lengths, 200)
    content.instructions = content.instructions * 200
    content.reader = type("Many", (), {"__len__": lambda self: 6000})()
    content._successes = [True] * 6000
    part = content.rows(5990, 100)
    assert part["total"] == 6000 and [row["episode"] for row in part["rows"]] == list(range(5990, 6000))
    assert len(content.rows(0, 10**6)["rows"]) == 500


def dom(url: str) -> str:
    """The page as a browser has it after its scripts have run."""
    assert CHROMIUM
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ]
    found = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=8000", "--dump-dom", url],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(viewer: Viewer) -> None:
    shown = dom(viewer.url + "#1:17")
    assert 'data-step="17"' in shown and 'data-checked="yes"' in shown
    assert "jumps by" in shown and "9 steps by a human" in shown and "step 17 of 39" in shown
    assert "4 of 4 episodes" in shown and shown.count('class="row') == 4
    assert shown.count("<canvas") == 2 + 3  # cameras; state, action, times
    assert "cannot be read" not in shown
    other = dom(viewer.url + "#2")  # text of the dataset is text
    assert "&lt;b&gt;put&lt;/b&gt; it &amp; 'go'" in other and "<b>put</b>" not in other


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_it_plays_at_the_recorded_rate(viewer: Viewer) -> None:
    """By the clock of the page, which stands still while it waits for an answer (`--virtual-time-budget`)."""
    shown = dom(viewer.url + "#3:0:play")
    found = re.search(r'data-played="0-(\d+) in (\d+) ms"', shown)
    assert found and int(found[1]) == LENGTH - 1 and f'data-step="{LENGTH - 1}"' in shown
    times = open_dataset(viewer.content.reader.path).read(3, images=False).time
    assert float(found[2]) == pytest.approx((times[-1] - times[0]) * 1000, rel=0.15)

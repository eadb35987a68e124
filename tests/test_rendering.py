from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import vla_agents  # noqa: F401  (registers the ids)
from vla_agents.envs import raycast, rendering
from vla_agents.errors import RenderingError, UnknownNameError

ID = "vla_agents/Tabletop-v0"
needs_egl = pytest.mark.usefixtures("egl")

# Run by every Python that is started with it on its path: as on a machine without the libraries.
HIDE_OPENGL = """
import ctypes
load = ctypes.CDLL.__init__
def missing(self, name, *args, **kwargs):
    if name and any(part in str(name) for part in ("EGL", "OSMesa", "libGL", "OpenGL")):
        raise OSError(f"{name}: cannot open shared object file")
    load(self, name, *args, **kwargs)
ctypes.CDLL.__init__ = missing
"""
TRY = """
import sys
import gymnasium as gym, vla_agents
from vla_agents.errors import RenderingError
try:
    env = gym.make("vla_agents/Tabletop-v0", renderer=sys.argv[1], cameras=tuple(sys.argv[2:]))
    obs, info = env.reset(seed=0)
    print(info["renderer"], *(image.mean().round() for image in obs.get("images", {}).values()))
except RenderingError as error:
    print("RenderingError", error)
"""


def attempt(*argv: str, code: str = TRY, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="session")
def egl() -> None:
    if rendering.problem_with("egl") is not None:
        pytest.skip("no EGL on this machine")


@pytest.fixture
def without_opengl(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(HIDE_OPENGL)
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("chosen", [None, "egl", "nonsense"])
def test_without_opengl_auto_casts_rays(without_opengl, chosen):
    choice = {} if chosen is None else {"MUJOCO_GL": chosen}
    done = attempt("auto", "front", **without_opengl, **choice)
    assert done.returncode == 0 and done.stdout.split()[0] == "raycast", done.stderr
    assert float(done.stdout.split()[1]) > 50  # there is a picture
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "package"), [("egl", "libegl1 libgl1-mesa-dri"), ("osmesa", "libosmesa6")])
def test_a_missing_library_is_named_with_its_package(without_opengl, name, package):
    done = attempt(name, "front", **without_opengl)
    assert done.stdout.startswith("RenderingError") and f"apt-get install {package}" in done.stdout
    assert "is not installed" in done.stdout and "Traceback" not in done.stdout + done.stderr


@needs_egl
def test_an_egl_without_drivers_is_no_egl():
    nowhere = {"__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"}
    assert attempt("auto", "front", **nowhere).stdout.split()[0] in ("osmesa", "raycast")
    said = attempt("egl", "front", **nowhere).stdout
    assert (
        said.startswith("RenderingError") and "apt-get install libegl1" in said and "'NoneType'" not in said
    )


@pytest.mark.parametrize("chosen", ["egl", ""])
def test_simulating_without_pictures_needs_no_opengl(without_opengl, chosen):
    done = attempt("auto", **without_opengl, MUJOCO_GL=chosen)
    assert done.stdout.split() == ["none"], done.stderr


@needs_egl
def test_the_users_choice_is_followed():
    assert attempt("auto", "front", MUJOCO_GL="egl").stdout.split()[0] == "egl"
    assert attempt("auto", "front", MUJOCO_GL="disable").stdout.split()[0] == "raycast"


@needs_egl
def test_mujoco_may_have_been_imported_before():
    done = attempt("auto", "front", code="import mujoco\n" + TRY)
    assert done.stdout.split()[0] == "egl", done.stderr


@needs_egl
@pytest.mark.parametrize("ending", ["", "env.close(); env.reset(); env.close()"])
def test_a_process_ends_quietly(ending):
    code = (
        "import gymnasium as gym, vla_agents\n"
        "env = gym.make('vla_agents/Tabletop-v0', render_mode='rgb_array')\n"
        "other = gym.make('vla_agents/Tabletop-v0')\n"
        "env.reset(seed=0), other.reset(seed=0), env.render()\n" + ending
    )
    done = attempt(code=code)
    assert done.returncode == 0 and done.stderr == ""


@needs_egl
@pytest.mark.parametrize("leave", [lambda env: None, lambda env: env.close()], ids=["forget", "close"])
def test_one_renderer_less_leaves_the_others_their_pictures(leave):
    first, second = gym.make(ID, renderer="egl"), gym.make(ID, renderer="egl")
    first.reset(seed=0)
    before = second.reset(seed=1)[0]["images"]
    leave(first)
    del first
    third = gym.make(ID, renderer="egl")
    for env in (second, third):
        after = env.reset(seed=1)[0]["images"]
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(before[camera], after[camera])


def test_names_are_checked(monkeypatch):
    with pytest.raises(UnknownNameError, match="osmesa"):
        rendering.choose_renderer("opengl")
    monkeypatch.setattr(rendering, "problem_with", lambda name: f"no {name} today")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert rendering.choose_renderer("auto") == "raycast" and "MUJOCO_GL" not in os.environ
    with pytest.raises(RenderingError, match="LIBERO needs OpenGL"):
        rendering.require_gl("LIBERO")
    with pytest.raises(RenderingError, match=r"no egl today|already"):
        rendering.choose_renderer("egl")


def test_one_process_has_one_opengl(monkeypatch):
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(RenderingError, match="'egl' in this process already"):
        rendering.choose_renderer("osmesa")


# ---- the ray-casting renderer -----------------------------------------------------------------------------
@needs_egl
@pytest.mark.parametrize("size", [64, (96, 160)])
def test_rays_see_what_opengl_sees(size):
    gl = gym.make(ID, task="all", difficulty="hard", image_size=size, renderer="egl")
    rays = gym.make(ID, task="all", difficulty="hard", image_size=size, renderer="raycast")
    for seed in range(12):
        gl.reset(seed=seed), rays.reset(seed=seed)
        for _ in range(6):
            action = gl.unwrapped.expert_action()
            a, b = gl.step(action)[0], rays.step(action)[0]
        assert gl.unwrapped.possible_instructions() == rays.unwrapped.possible_instructions()
        for camera in ("front", "wrist"):
            difference = np.abs(
                a["images"][camera].astype(int) - b["images"][camera]
            )  # (H, W, 3), grey levels
            assert difference.mean() < 0.3  # 0.03 to 0.1 measured
            assert (difference.max(-1) > 12).mean() < 0.004  # silhouettes: a few pixels along edges


def test_rays_give_the_same_picture_each_time():
    first, second = (gym.make(ID, renderer="raycast", render_mode="rgb_array") for _ in range(2))
    a, info = first.reset(seed=1)
    b, _ = second.reset(seed=1)
    assert info["renderer"] == "raycast"
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(a["images"][camera], b["images"][camera])
    assert first.render().shape == (480, 480, 3)


@pytest.mark.parametrize("shape", [raycast._box, raycast._sphere, raycast._cylinder])
def test_shapes_are_hit_where_their_equations_say(shape):
    random, size = np.random.default_rng(0), np.array([0.3, 0.2, 0.1])
    origin = np.array([0.9, 0.7, 0.8])
    rays = random.uniform(-0.4, 0.4, (4000, 3)) - origin
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    distance, normals = shape(origin, rays, size)
    hit = np.isfinite(distance)
    points = origin + rays[hit] * distance[hit, None]
    outside = {
        raycast._box: lambda p: (np.abs(p) - size).max(1),
        raycast._sphere: lambda p: np.linalg.norm(p, axis=1) - size[0],
        raycast._cylinder: lambda p: np.maximum(
            np.linalg.norm(p[:, :2], axis=1) - size[0], np.abs(p[:, 2]) - size[1]
        ),
    }[shape]
    assert 300 < hit.sum() < 3900
    np.testing.assert_allclose(outside(points), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(normals[hit], axis=1), 1.0)
    assert (np.einsum("ij,ij->i", normals[hit], rays[hit]) < 1e-9).all()  # they face the origin
    assert (outside(points + 1e-4 * normals[hit]) > 5e-5).all()  # and point outwards
    along = np.linspace(0.0, 3.0, 3001)
    for ray in rays[~hit][:50]:  # what is missed has no point inside
        assert outside(origin + along[:, None] * ray).min() > -1e-6


def test_a_box_is_hit_square_on():
    rays = np.array([[-1.0, 0.0, 0.0], [-1.0, -0.0, 0.0], [0.0, 1.0, 0.0]])
    distance, normals = raycast._box(np.array([2.0, 0.0, 0.0]), rays, np.array([0.5, 0.5, 0.5]))
    np.testing.assert_allclose(distance, [1.5, 1.5, np.inf])
    np.testing.assert_allclose(normals[:2], [[1, 0, 0], [1, 0, 0]])


def test_an_unknown_shape_and_a_closed_renderer_are_refused():
    import mujoco

    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><geom name="egg" type="ellipsoid" size=".1 .1 .2"/></worldbody></mujoco>'
    )
    with pytest.raises(RenderingError, match="'egg'"):
        rendering.make_renderer(model, 16, 16, "raycast")
    plain = mujoco.MjModel.from_xml_string('<mujoco><worldbody><camera name="eye"/></worldbody></mujoco>')
    renderer = rendering.make_renderer(plain, 16, 16, "raycast")
    renderer.close()
    with pytest.raises(RenderingError, match="closed"):
        renderer.render(mujoco.MjData(plain), "eye")

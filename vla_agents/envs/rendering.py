"""Which renderer a machine can use, and pictures from MuJoCo scenes.

OpenGL without a display needs a system library that pip cannot install, and MuJoCo reports its absence as an
obscure `AttributeError` from PyOpenGL, at import even. Here a renderer is tried in a process of its own
before it is used, and a missing library is a `RenderingError` that names the package. `MUJOCO_GL`, where the
user has set it, is tried first.

`"egl"` and `"osmesa"` draw through OpenGL (GPU or software; software), `"glfw"` where there is a display,
`"raycast"` needs no library at all.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import functools
import logging
import os
import subprocess
import sys
import weakref
from typing import Any, Protocol

import numpy as np

from vla_agents.envs.raycast import RaycastRenderer
from vla_agents.errors import RenderingError, UnknownNameError

logger = logging.getLogger(__name__)

RENDERERS = ("egl", "osmesa", "glfw", "raycast")
_APT = {
    "egl": "apt-get install libegl1 libgl1-mesa-dri",
    "osmesa": "apt-get install libosmesa6",
    "glfw": "start a display (or use renderer='egl')",
}
_LIBRARIES = {"egl": ("libEGL.so.1", "EGL"), "osmesa": ("libOSMesa.so.8", "OSMesa")}
_OFF = ("disable", "disabled", "off", "false", "0")
_PROBE = """
import os
os.environ.pop("PYOPENGL_PLATFORM", None)
os.environ["MUJOCO_GL"] = "{name}"
try:
    import mujoco
    renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
    renderer.render()
    from OpenGL import GL
    print("drawn by " + GL.glGetString(GL.GL_RENDERER).decode(errors="replace"), flush=True)
except BaseException as error:
    print(type(error).__name__ + ": " + str(error), flush=True)
os._exit(0)  # without MuJoCo's own complaints at the end
"""


class FrameRenderer(Protocol):
    """Pictures of one size from one model."""

    name: str

    def render(self, data: Any, camera: str) -> np.ndarray:
        """uint8 RGB (height, width, 3), upright."""

    def close(self) -> None:
        """Free what the renderer holds; it cannot be used afterwards."""


# ---- choosing ---------------------------------------------------------------------------------------------
def choose_renderer(wanted: str = "auto") -> str:
    """The renderer to use: `wanted` itself, or for `"auto"` the first that works of egl, osmesa, raycast.

    Sets `MUJOCO_GL`, so that whoever imports mujoco afterwards (robosuite, say) agrees.

    Raises:
        UnknownNameError: No such renderer.
        RenderingError: The renderer that was asked for does not work here; names the package to install.
    """
    if wanted not in ("auto", *RENDERERS):
        raise UnknownNameError("renderer", wanted, ("auto", *RENDERERS))
    name = _automatic() if wanted == "auto" else wanted
    if name != "raycast":
        problem = _conflict(name) or problem_with(name)
        if problem is not None:
            raise RenderingError(f"the renderer {name!r} does not work here: {problem}", _APT[name])
        os.environ["MUJOCO_GL"] = name
        # Mesa's software renderer starts threads that a forked process (AsyncVectorEnv's) would wait for in
        # vain, and that do not make small pictures faster.
        os.environ.setdefault("LP_NUM_THREADS", "0")
    return name


def require_gl(needed_for: str) -> str:
    """`choose_renderer("auto")` for simulators with an OpenGL renderer of their own: never `"raycast"`."""
    name = choose_renderer("auto")
    if name == "raycast":
        raise RenderingError(f"{needed_for} needs OpenGL, and neither EGL nor OSMesa works here", _APT["egl"])
    return name


def import_mujoco() -> Any:
    """The module `mujoco`, also where `MUJOCO_GL` names a library that is missing: simulating needs none."""
    try:
        import mujoco
    except (AttributeError, ImportError, RuntimeError, OSError) as error:
        if _user_choice() in ("", *_OFF):
            raise
        logger.warning(
            "MUJOCO_GL=%s does not work here (%s): using mujoco without OpenGL", _user_choice(), error
        )
        for name in [n for n in sys.modules if n == "mujoco" or n.startswith("mujoco.")]:
            if not name.startswith("mujoco._"):  # C extensions, which cannot be loaded twice
                del sys.modules[name]
        os.environ["MUJOCO_GL"] = "disable"
        import mujoco
    return mujoco


def _user_choice() -> str:
    return os.environ.get("MUJOCO_GL", "").lower().strip()


def _automatic() -> str:
    chosen = _user_choice()
    if chosen in _OFF:
        return "raycast"
    candidates = ["egl", "osmesa"] if sys.platform == "linux" else ["glfw"]
    if chosen in ("egl", "osmesa", "glfw"):
        candidates = [chosen, *(name for name in candidates if name != chosen)]
    for name in candidates:
        if _conflict(name) is None and problem_with(name) is None:
            return name
    logger.warning("no OpenGL here: pictures are ray-cast on the CPU (%s for OpenGL)", _APT["egl"])
    return "raycast"


def _conflict(name: str) -> str | None:
    platform = os.environ.get("PYOPENGL_PLATFORM", "")
    if name not in _LIBRARIES or platform in ("", name):
        return None
    return f"OpenGL is used through {platform!r} in this process already, and there can be only one"


def problem_with(name: str) -> str | None:
    """Why an OpenGL renderer cannot be used here, or None where it can. Found out once per process."""
    return _try(name)[0]


def driver_of(name: str) -> str:
    """What draws for an OpenGL renderer (`"llvmpipe (LLVM 15.0.6, 256 bits)"`); "" where it cannot be used here."""
    return _try(name)[1]


@functools.cache
def _try(name: str) -> tuple[str | None, str]:
    """Problem and driver of an OpenGL renderer."""
    library = _LIBRARIES.get(name)
    if library is not None:
        path = ctypes.util.find_library(library[1])
        try:
            ctypes.CDLL(path or library[0])
        except OSError:
            return f"the library {library[0]} is not installed", ""
    try:
        # In a process of its own: a broken driver may crash it, and a failed try leaves PyOpenGL unusable.
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE.format(name=name)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"trying it failed ({error})", ""
    said = done.stdout.strip().splitlines() or [f"trying it ended with code {done.returncode}"]
    drawn = [line.removeprefix("drawn by ") for line in said if line.startswith("drawn by ")]
    return (None, drawn[-1]) if drawn else (said[-1], "")


# ---- OpenGL -----------------------------------------------------------------------------------------------
class GLRenderer:
    """Pictures through OpenGL.

    What `mujoco.Renderer` does, with a context that is chosen here and not at the import of mujoco.

    Args:
        model: The MjModel.
        height: Of the pictures, pixels.
        width: Of the pictures, pixels.
        name: `"egl"`, `"osmesa"` or `"glfw"`.
        samples: Samples per pixel against jagged edges; 0 is fastest.
        shadows: Size of the shadow map; 0 for no shadows.
    """

    def __init__(
        self, model: Any, height: int, width: int, name: str = "egl", *, samples: int = 0, shadows: int = 0
    ) -> None:
        import mujoco

        self._mjr: Any = None
        _refuse_after_fork()
        self.name = name
        self._process = os.getpid()
        self._mj, self._model = mujoco, model
        self._pixels = np.empty((height, width, 3), np.uint8)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._cameras: dict[str, Any] = {}
        self._option = mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model=model, maxgeom=model.ngeom + 20)
        self._context = _gl_context(name, width, height)
        self._context.make_current()
        # The framebuffer takes its size and samples from the model at this moment.
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        model.vis.quality.offsamples, model.vis.quality.shadowsize = samples, shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows > 0
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        _remember(self)

    def render(self, data: Any, camera: str) -> np.ndarray:
        """uint8 RGB (height, width, 3), upright; a new array."""
        mujoco = self._mj
        if self._mjr is None:
            raise RenderingError("the renderer is closed")
        view = self._cameras.get(camera)
        if view is None:
            view = self._cameras[camera] = mujoco.MjvCamera()
            view.type = mujoco.mjtCamera.mjCAMERA_FIXED
            view.fixedcamid = self._model.camera(camera).id
        self._context.make_current()
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        mujoco.mjr_render(self._rect, self._scene, self._mjr)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._mjr)
        return self._pixels[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the context."""
        if self._mjr is not None and self._process == os.getpid():
            self._context.make_current()
            self._mjr.free()
            self._context.free()
        elif self._mjr is not None:  # the parent's, in a forked process: neither ours to free nor to drop
            _inherited.append((self._context, self._mjr))
        self._mjr = None

    def __del__(self) -> None:
        # Left to itself MjrContext would free its buffers in whichever context is current: another renderer's.
        self.close()


def _gl_context(name: str, width: int, height: int) -> Any:
    try:
        if name == "egl":
            from mujoco.egl import GLContext
        elif name == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.gl_context import GLContext
        return GLContext(width, height)
    except (AttributeError, ImportError, RuntimeError) as error:
        raise RenderingError(f"the renderer {name!r} does not work here: {error}", _APT[name]) from error


_open: weakref.WeakSet[GLRenderer] = weakref.WeakSet()
_inherited: list[Any] = []
_first_use: dict[str, Any] = {}  # "process", and whether the driver is "software"


def _remember(renderer: GLRenderer) -> None:
    if not _first_use:
        from OpenGL import GL

        driver = (GL.glGetString(GL.GL_RENDERER) or b"").decode(errors="replace")
        _first_use.update(
            process=os.getpid(), software="llvmpipe" in driver or "softpipe" in driver, driver=driver
        )
        # Registered after the first context, so it runs before MuJoCo's hook, which ends the display.
        atexit.register(_close_all)
    _open.add(renderer)


def _refuse_after_fork() -> None:
    if _first_use and _first_use["process"] != os.getpid() and not _first_use["software"]:
        raise RenderingError(
            f"this process was forked from one that had used OpenGL through {_first_use['driver']}",
            "AsyncVectorEnv(..., context='spawn'), or do not render in the parent process before",
        )


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()


def make_renderer(
    model: Any, height: int, width: int, name: str, *, samples: int = 0, shadows: int = 0
) -> FrameRenderer:
    """A renderer by its name, one of `RENDERERS`."""
    if name == "raycast":
        return RaycastRenderer(model, height, width, samples=samples)
    return GLRenderer(model, height, width, name, samples=samples, shadows=shadows)

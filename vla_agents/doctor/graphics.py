"""Checks of what draws and what computes: OpenGL, Vulkan, the GPU, attention kernels on it."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vla_agents.doctor.checks import Row, Target, lacking
from vla_agents.doctor.probe import ProbeError, ask
from vla_agents.doctor.remedies import apt, install_extra, pip_install, python, sudo
from vla_agents.envs import rendering

FIRST_MESA = 25  # lavapipe: 22.3.6 fails under SAPIEN 3, 25.0.7 works; between them nothing was tried
_CPU = 4  # VkPhysicalDeviceType

# ---- OpenGL ---------------------------------------------------------------------------------------------------
_PACKAGES = {"egl": ("libegl1", "libgl1", "libgl1-mesa-dri", "libglib2.0-0"), "osmesa": ("libosmesa6",)}


def opengl(target: Target) -> Iterator[Row]:
    """EGL or OSMesa: a scene is drawn, in a process of its own. Without either the tabletop casts rays."""
    if find_spec("mujoco") is None:
        yield Row("OpenGL", lacking(needed=target.needs_opengl), "not tried: mujoco is not installed")
        return
    problems = {name: rendering.problem_with(name) for name in ("egl", "osmesa")}
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if problems.get(chosen):
        yield Row("MUJOCO_GL", "warning", f"{chosen} is asked for: {problems[chosen]}", "unset MUJOCO_GL")
    working = [name for name, problem in problems.items() if problem is None]
    if not working:
        found = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        if target.needs_opengl:
            yield Row("OpenGL", "missing", found, **apt(*_PACKAGES["egl"]))
        else:
            yield Row("OpenGL", "warning", f"{found}: rays are cast, slower", **apt(*_PACKAGES["egl"]))
        return
    drawn = "; ".join(f"{name}, drawn by {rendering.driver_of(name)}" for name in working)
    other = "; ".join(f"{name}, an alternative: {why}" for name, why in problems.items() if why)
    yield Row("OpenGL", "ok", drawn + (f"; {other}" if other else ""))
    if working[0] == "egl" and "llvmpipe" in rendering.driver_of("egl") and gpu_facts().get("gpus"):
        found = "EGL draws on the CPU although there is a GPU: NVIDIA's EGL is not visible"
        advice = "in Docker: docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all ...; else install libnvidia-gl"
        yield Row("OpenGL on the GPU", "warning", found, advice=advice)


# ---- Vulkan ---------------------------------------------------------------------------------------------------
# vulkan_core.h, version 1.2: vkCreateInstance, vkEnumeratePhysicalDevices, vkGetPhysicalDeviceProperties2 with the
# driver's own words (VkPhysicalDeviceDriverProperties: "Mesa 22.3.6 (LLVM 15.0.6)"; lavapipe's number says nothing).
_VULKAN = """
from ctypes import *
vulkan = CDLL("libvulkan.so.1")
class Info(Structure):
    _fields_ = [("sType", c_int), ("pNext", c_void_p), ("flags", c_uint32), ("app", c_void_p), ("layers", c_uint32),
                ("layer_names", c_void_p), ("extensions", c_uint32), ("extension_names", c_void_p)]
class App(Structure):
    _fields_ = [("sType", c_int), ("pNext", c_void_p), ("name", c_char_p), ("version", c_uint32), ("engine", c_char_p),
                ("engine_version", c_uint32), ("api", c_uint32)]
class Driver(Structure):
    _fields_ = [("sType", c_int), ("pNext", c_void_p), ("id", c_int), ("name", c_char * 256), ("info", c_char * 256),
                ("rest", c_char * 64)]
class Properties(Structure):
    _fields_ = [("sType", c_int), ("pNext", c_void_p), ("api", c_uint32), ("driver", c_uint32), ("vendor", c_uint32),
                ("device", c_uint32), ("type", c_int), ("name", c_char * 256), ("rest", c_char * 4096)]
app = App(sType=0, api=(1 << 22) | (2 << 12))
instance, count = c_void_p(), c_uint32()
code = vulkan.vkCreateInstance(byref(Info(sType=1, app=addressof(app))), None, byref(instance))
if code:
    answer({"code": code, "devices": []})
vulkan.vkEnumeratePhysicalDevices(instance, byref(count), None)
devices = (c_void_p * max(1, count.value))()
vulkan.vkEnumeratePhysicalDevices(instance, byref(count), devices)
found = []
for device in devices[:count.value]:
    driver = Driver(sType=1000196000)
    about = Properties(sType=1000059001, pNext=addressof(driver))
    vulkan.vkGetPhysicalDeviceProperties2(c_void_p(device), byref(about))
    found.append([text.decode(errors="replace") for text in (about.name, driver.info)] + [about.type])
answer({"code": 0, "devices": found})
"""


def vulkan(target: Target) -> Iterator[Row]:
    """The loader and its devices; SAPIEN (SimplerEnv) draws with it."""
    needed = target.needs_vulkan
    install = _newer_mesa() if needed else apt("libvulkan1", "mesa-vulkan-drivers")
    if not loads("libvulkan.so.1"):
        yield Row("Vulkan", lacking(needed=needed), "the library libvulkan.so.1 is not installed", **install)
        return
    try:
        told = ask(_VULKAN, timeout=60)
    except ProbeError as error:
        yield Row("Vulkan", lacking(needed=needed), f"asking for its devices: {error}", **install)
        return
    if not told["devices"]:
        found = f"no device: no driver is installed (VkResult {told['code']})"
        yield Row("Vulkan", lacking(needed=needed), found, **install)
        return
    new_enough = [device for device in told["devices"] if _can_draw_sapien(device)]
    shown = ", ".join(_describe(device) for device in told["devices"])
    if new_enough:
        yield Row("Vulkan", "ok", shown)
    else:
        found = f"{shown}: SAPIEN needs Mesa {FIRST_MESA} or newer"
        yield Row("Vulkan", lacking(needed=needed), found, **_newer_mesa())


def _can_draw_sapien(device: list[Any]) -> bool:
    _, driver, kind = device
    mesa = re.match(r"Mesa (\d+)", driver)
    return kind != _CPU or (mesa is not None and int(mesa.group(1)) >= FIRST_MESA)


def _describe(device: list[Any]) -> str:
    name, driver, kind = device
    return f"{name}, {driver}{' (on the CPU)' if kind == _CPU else ''}"


def _newer_mesa() -> dict[str, str]:
    """From Debian 12's backports; elsewhere the release's own, or a newer release."""
    if "VERSION_CODENAME=bookworm" not in _read("/etc/os-release"):
        return apt("mesa-vulkan-drivers")
    sources = "/etc/apt/sources.list.d/debian.sources"
    add = (
        ""
        if "bookworm-backports" in _read(sources)
        else (f"{sudo()}sed -i 's/^Suites: bookworm bookworm-updates/& bookworm-backports/' {sources} && ")
    )
    get = f"{sudo()}apt-get update && {sudo()}apt-get install --yes -t bookworm-backports mesa-vulkan-drivers"
    return {"command": add + get}


def loads(library: str) -> bool:
    """Whether the system's loader finds a library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ---- GPU ------------------------------------------------------------------------------------------------------
# The CUDA driver API: cuInit, cuDriverGetVersion, cuDeviceGet(Count|Name|Attribute 75 and 76), cuDeviceTotalMem_v2.
_CUDA = """
from ctypes import *
cuda, number, gpus = CDLL("libcuda.so.1"), c_int(), []
code = cuda.cuInit(0)
cuda.cuDriverGetVersion(byref(number))
driver = number.value
count = c_int()
if code == 0:
    cuda.cuDeviceGetCount(byref(count))
for index in range(count.value):
    name, size, major, minor = create_string_buffer(256), c_size_t(), c_int(), c_int()
    cuda.cuDeviceGetName(name, 256, index)
    cuda.cuDeviceTotalMem_v2(byref(size), index)
    cuda.cuDeviceGetAttribute(byref(major), 75, index)
    cuda.cuDeviceGetAttribute(byref(minor), 76, index)
    gpus.append([name.value.decode(), size.value / 1e9, f"{major.value}.{minor.value}"])
answer({"code": code, "driver": driver, "gpus": gpus})
"""
_TORCH = """
import torch
if not torch.cuda.is_available():
    answer("torch does not see it")
x = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
answer("" if float((x @ x).sum()) == 64.0**3 else "a product of matrices came out wrong")
"""


def gpu(target: Target) -> Iterator[Row]:
    """An NVIDIA GPU, its driver, and whether torch computes on it. Nothing here needs one."""
    facts = gpu_facts()
    build = torch_build()
    if not facts.get("gpus"):
        if facts.get("problem"):
            yield Row("GPU", "warning", facts["problem"], facts.get("command", ""), facts.get("advice", ""))
        else:
            yield Row("GPU", "absent", f"no NVIDIA GPU; torch: {build or 'not installed'}")
        return
    driver = facts["driver"]
    cuda = f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
    names = ", ".join(f"{name}, {size:.0f} GB, compute capability {cc}" for name, size, cc in facts["gpus"])
    if build == "the CPU build":
        again = f"{python()} -m pip uninstall --yes torch && {pip_install('torch')}"
        yield Row("GPU", "warning", f"{names}; torch is the CPU build", again, "docs/install.md: which torch")
        return
    try:
        problem = ask(_TORCH, timeout=120) if build else "torch is not installed"
    except ProbeError as error:
        problem = str(error)
    if problem:
        newest = f"{python()} -m pip install --upgrade torch"
        yield Row("GPU", "warning", f"{names}, {cuda}; torch is {build}: {problem}", newest)
    else:
        yield Row("GPU", "ok", f"{names}; {cuda}; torch, {build}, computes on it")


@cache
def gpu_facts() -> dict[str, Any]:
    """`gpus` (name, GB, compute capability) and `driver`; or a `problem`; or nothing, where there is no NVIDIA GPU."""
    if loads("libcuda.so.1"):
        try:
            told: dict[str, Any] = ask(_CUDA, timeout=60)
        except ProbeError as error:
            return {"problem": f"asking the NVIDIA driver: {error}", "command": "nvidia-smi"}
        if told["gpus"] or not nvidia_on_the_bus():
            return told
        return {
            "problem": f"an NVIDIA GPU, whose driver fails (CUresult {told['code']})",
            "command": "nvidia-smi",
        }
    if not nvidia_on_the_bus():
        return {}
    advice = "install NVIDIA's driver (Ubuntu: ubuntu-drivers install); in Docker: docker run --gpus all ..."
    return {"problem": "an NVIDIA GPU, and no driver in sight (libcuda.so.1)", "advice": advice}


def nvidia_on_the_bus() -> bool:
    """Whether a PCI display device or accelerator (class 3) is NVIDIA's."""
    return any(
        _read(str(vendor)).strip() == "0x10de" and _read(str(vendor.with_name("class"))).startswith("0x03")
        for vendor in Path("/sys/bus/pci/devices").glob("*/vendor")
    )


def torch_build() -> str:
    """`"the CPU build"`, `"built for CUDA 12.8"`, ...; "" where torch is not installed. Read, not imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    text = _read(str(Path(spec.origin).with_name("version.py")))
    for what, words in (("cuda", "built for CUDA"), ("hip", "built for ROCm")):
        version = re.search(rf"^{what}[^=]*= *'([^']+)'", text, re.MULTILINE)
        if version:
            return f"{words} {version.group(1)}"
    return "the CPU build"


def attention(target: Target) -> Iterator[Row]:
    """flash-attention where there is a GPU, else torch's own kernels."""
    if find_spec("torch") is None:
        yield Row("attention", "missing", "torch is not installed", pip_install("torch"))
    elif find_spec("flash_attn") is None:
        optional = install_extra("flash-attn") if gpu_facts().get("gpus") else ""
        yield Row("attention", "ok", "torch's own kernels (sdpa)", optional)
    elif not gpu_facts().get("gpus"):
        yield Row("attention", "ok", "torch's own kernels (sdpa); flash-attn is installed, for GPUs only")
    else:
        try:
            yield Row(
                "attention", "ok", f"flash-attn {ask('import flash_attn; answer(flash_attn.__version__)')}"
            )
        except ProbeError as error:
            again = pip_install("flash-attn", options="--force-reinstall --no-deps --no-build-isolation")
            yield Row("attention", "warning", f"flash-attn cannot be loaded ({error}): sdpa is used", again)

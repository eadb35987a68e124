"""An encoder must not make a real-time process of us: a robot's loop may run beside it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vla_agents.data.video.copy import encode_frames
from vla_agents.data.video.encode import VideoEncoder, VideoSettings
from vla_agents.data.video.scheduling import ordinary_scheduling

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies are Linux's")
BLACK = np.zeros((64, 64, 3), np.uint8)


def policies() -> set[int]:
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_encoding_leaves_every_threads_scheduling_alone(codec: str, tmp_path: Path) -> None:
    settings = VideoSettings(64, 64, 30, codec=codec)
    before = policies()
    encoder = VideoEncoder(settings)
    for _ in range(3):
        encoder.add(BLACK)
        assert policies() == before
    assert encoder.finish()
    assert encode_frames([BLACK] * 3, settings, tmp_path / "black.mp4") == 3
    assert policies() == before


def test_policies_are_put_back_in_old_threads_and_new() -> None:
    """SCHED_BATCH stands for SCHED_FIFO, which only root may take."""
    end, mine = threading.Event(), os.sched_getscheduler(0)
    started = [threading.Thread(target=end.wait)]
    started[0].start()
    with ordinary_scheduling():
        os.sched_setscheduler(started[0].native_id or 0, os.SCHED_BATCH, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        started.append(threading.Thread(target=end.wait))
        started[1].start()  # inherits
        assert os.sched_getscheduler(started[1].native_id or 0) == os.SCHED_BATCH
    try:
        assert os.sched_getscheduler(0) == mine
        assert all(os.sched_getscheduler(thread.native_id or 0) == mine for thread in started)
    finally:
        end.set()
        for thread in started:
            thread.join()

"""Cameras: newest picture, capture times, lost devices, wrong sizes; over real files and a real socket."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import pytest
from emulators.mjpeg import MjpegServer

from vla_agents.errors import CameraError, ConfigError
from vla_agents.robots.cameras import CAMERAS, make_camera
from vla_agents.robots.cameras.opencv import OpenCVCamera
from vla_agents.robots.cameras.stream import CameraStream
from vla_agents.robots.cameras.synthetic import SyntheticCamera
from vla_agents.robots.cameras.video import NetworkCamera, VideoFileCamera
from vla_agents.robots.robot import CameraSource


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


class Scripted(CameraStream):
    """Gives pictures until told to be lost."""

    lost, opened, released = False, 0, 0

    def open(self):
        self.opened += 1
        if self.lost:
            raise CameraError("unplugged")
        return object()

    def grab(self, device):
        time.sleep(0.002)
        if self.lost:
            raise CameraError("unplugged")
        return np.zeros((4, 6, 3), np.uint8), time.monotonic()

    def release(self, device):
        self.released += 1


# ---- every camera ---------------------------------------------------------------------------------------------
def test_the_newest_picture_and_its_time():
    camera = make_camera("synthetic", "front", 24, 32, fps=100)
    assert isinstance(camera, SyntheticCamera) and isinstance(camera, CameraSource)
    with pytest.raises(CameraError, match="not connected"):
        camera.latest()
    camera.close()
    camera.connect()
    try:
        with pytest.raises(CameraError, match="connected already"):
            camera.connect()
        first = camera.latest()
        assert first.image.shape == (24, 32, 3) and first.image.dtype == np.uint8
        assert 0 <= time.monotonic() - first.time < 1.0
        assert not first.image.flags.writeable
        wait_until(lambda: camera.latest().number >= first.number + 5)
        frame = camera.latest()
        assert SyntheticCamera.number_in(frame.image) == frame.number > first.number
        assert frame.time > first.time
    finally:
        camera.close()
    camera.close()
    number = camera.frames
    time.sleep(0.05)
    assert camera.frames == number, "the thread has ended"


@pytest.mark.parametrize(("turn", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_pictures_are_turned_clockwise(turn, corner):
    class Marked(Scripted):
        def grab(self, device):
            image = np.zeros((*self.device_size, 3), np.uint8)
            image[0, 0] = 255
            return image, time.monotonic()

    camera = Marked("", "c", 4, 6, turn=turn)
    camera.connect()
    frame = camera.latest()
    camera.close()
    assert frame.image.shape == (4, 6, 3) and frame.image[corner].all() and frame.image.sum() == 3 * 255


def test_a_lost_camera_comes_back(caplog):
    camera = Scripted("", "wrist", 4, 6)
    camera.connect()
    try:
        wait_until(lambda: camera.frames > 3)
        camera.lost = True
        wait_until(lambda: camera.opened >= 2)
        old = camera.latest()
        time.sleep(0.05)
        assert camera.latest() is old, "the last picture, with its old time"
        camera.lost = False
        wait_until(lambda: camera.latest().number > old.number)
        wait_until(lambda: "is back" in caplog.text)  # said just after the picture is there
        assert camera.reconnects == 1 and "is lost" in caplog.text
    finally:
        camera.close()
    assert camera.released >= 2


def test_a_camera_that_never_comes_back():
    camera = Scripted("", "wrist", 4, 6, give_up_s=0.2)
    camera.connect()
    camera.lost = True

    def raises():
        try:
            camera.latest()
        except CameraError:
            return True

    wait_until(raises)
    with pytest.raises(CameraError, match="unplugged"):
        camera.latest()
    camera.close()


def test_a_camera_that_hangs_does_not_hang_us(caplog):
    class Hanging(Scripted):
        def grab(self, device):
            time.sleep(0.4)
            return super().grab(device)

    camera = Hanging("", "slow", 4, 6, wait_s=0.05)
    with pytest.raises(CameraError, match="gave no picture within"):
        camera.connect()


def test_another_size_is_refused():
    with pytest.raises(CameraError, match=r"gives pictures of 4x6, asked for 480x640[\s\S]*ResizeImages"):
        Scripted("", "front", 480, 640).connect()


def test_a_bug_in_a_camera_is_an_error_not_a_silence():
    class Broken(Scripted):
        def grab(self, device):
            raise ZeroDivisionError

    with pytest.raises(CameraError, match="ZeroDivisionError"):
        Broken("", "front", 4, 6).connect()


def test_sources():
    assert isinstance(make_camera(0, "a", 4, 4), OpenCVCamera)
    assert isinstance(make_camera("/dev/video2", "a", 4, 4), OpenCVCamera)
    assert isinstance(make_camera("rtsp://host/x", "a", 4, 4), NetworkCamera)
    assert type(make_camera("realsense:123", "a", 4, 4)).__name__ == "RealSenseCamera"
    for source, problem in (("", "no source"), ("nothing.mp4", "no file")):
        with pytest.raises(ConfigError, match=problem):
            make_camera(source, "a", 4, 4)
    with pytest.raises(ConfigError, match="turn"):
        make_camera(0, "a", 4, 4, turn=45)
    with pytest.raises(ConfigError, match="fps"):
        make_camera(0, "a", 4, 4, fps=0)
    assert set(CAMERAS) == {"network", "opencv", "realsense", "synthetic", "video"}


# ---- files ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=50)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(10):
            image = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def test_a_file_plays_at_its_own_speed_and_starts_again(film):
    camera = VideoFileCamera(film, "front", 48, 64)
    camera.connect()
    start = time.monotonic()
    wait_until(lambda: camera.frames >= 25)
    seconds = time.monotonic() - start
    camera.close()
    assert camera.fps == 50 and seconds > 0.35
    once = VideoFileCamera(film, "front", 48, 64, fps=500, loop=False)
    once.connect()
    wait_until(lambda: once._error is not None)
    assert once.frames == 10
    with pytest.raises(CameraError, match="at its end"):
        once.latest()
    once.close()
    with pytest.raises(CameraError, match="gives pictures of 48x64"):
        VideoFileCamera(film, "front", 64, 48).connect()


def test_a_file_that_is_no_video(tmp_path):
    file = tmp_path / "x.mp4"
    file.write_text("no video")
    with pytest.raises(CameraError, match="cannot be opened"):
        VideoFileCamera(str(file), "front", 48, 64).connect()


# ---- network --------------------------------------------------------------------------------------------------
def test_a_network_camera_is_lost_and_comes_back():
    with MjpegServer() as server:
        camera = make_camera(server.url, "phone", 48, 64)
        camera.connect()
        try:
            seen = set()

            def three_colours():
                seen.add(int(camera.latest().image[20, 20].argmax()))
                return len(seen) == 3

            wait_until(three_colours)
            image = camera.latest().image
            assert sorted(image[20, 20])[2] > 230 and sorted(image[20, 20])[1] < 40
            server.hang_up.set()
            wait_until(lambda: time.monotonic() - camera.latest().time > 0.3)
            server.hang_up.clear()
            wait_until(lambda: time.monotonic() - camera.latest().time < 0.1)
            assert camera.reconnects >= 1
        finally:
            camera.close()


def test_no_network_camera():
    with MjpegServer() as server:
        url = server.url
    with pytest.raises(CameraError, match="cannot be opened"):
        make_camera(url, "phone", 48, 64).connect()


# ---- cameras of this machine ------------------------------------------------------------------------------------
class FakeCapture:
    """What OpenCV hands over: BGR, its own size, its own clock."""

    def __init__(self, *_):
        self.settings, self.size = {}, (48, 64)

    def isOpened(self):
        return True

    def set(self, key, value):
        self.settings[key] = value

    def read(self):
        time.sleep(0.005)
        self.stamp = time.monotonic() - 0.02
        return True, np.tile(np.array([1, 2, 3], np.uint8), (*self.size, 1))

    def get(self, key):
        return self.stamp * 1000

    def release(self):
        pass


def test_an_opencv_camera_asks_for_what_we_want_and_gives_rgb(monkeypatch, tmp_path):
    cv2 = pytest.importorskip("cv2")
    made = []
    monkeypatch.setattr(cv2, "VideoCapture", lambda *a: made.append(FakeCapture()) or made[-1])
    device = tmp_path / "video0"
    device.touch()
    camera = OpenCVCamera(str(device), "front", 48, 64, fps=25)
    camera.connect()
    frame = camera.latest()
    camera.close()
    assert frame.image[0, 0].tolist() == [3, 2, 1]
    assert 0.02 <= time.monotonic() - frame.time < 0.5, "the driver's own time stamp"
    asked = made[0].settings
    assert asked[cv2.CAP_PROP_FRAME_WIDTH] == 64 and asked[cv2.CAP_PROP_FRAME_HEIGHT] == 48
    assert asked[cv2.CAP_PROP_FPS] == 25 and asked[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    with pytest.raises(CameraError, match="gives pictures of 48x64, asked for 480x640"):
        OpenCVCamera(str(device), "front", 480, 640).connect()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="device files")
def test_missing_and_forbidden_devices(tmp_path):
    pytest.importorskip("cv2")
    with pytest.raises(CameraError, match="there is no /dev/video99"):
        OpenCVCamera("99", "front", 48, 64).connect()
    file = tmp_path / "video7"
    file.touch()
    with pytest.raises(CameraError, match="cannot be opened"):
        OpenCVCamera(str(file), "front", 48, 64).connect()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="another user's rights need root")
def test_a_forbidden_device_prints_the_udev_line():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        device = Path(folder) / "video7"
        device.touch(0o600)
        code = (
            "import os, cv2\n"
            "from vla_agents.errors import CameraError\n"
            "from vla_agents.robots.cameras.opencv import OpenCVCamera\n"
            f"os.setuid(65534)\ntry: OpenCVCamera({str(device)!r}, 'front', 4, 4).open()\n"
            "except CameraError as error: print(error)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "no permission" in said and 'SUBSYSTEM=="video4linux"' in said


def test_the_real_pyrealsense2_has_what_is_called():
    rs = pytest.importorskip("pyrealsense2", reason="pyrealsense2 is not installed")
    for name, attributes in {
        "config": ("enable_device", "enable_stream"), "pipeline": ("start", "stop", "wait_for_frames"),
        "composite_frame": ("get_color_frame",), "camera_info": ("serial_number",), "stream": ("color",),
        "video_frame": ("get_frame_timestamp_domain", "get_timestamp", "get_data"), "format": ("rgb8",),
        "timestamp_domain": ("global_time",), "context": ("query_devices",),
    }.items():  # fmt: skip
        for attribute in attributes:
            assert hasattr(getattr(rs, name), attribute), f"{name}.{attribute}"
    with pytest.raises(CameraError, match="there is no RealSense"):
        make_camera("realsense:000", "wrist", 480, 640).connect()

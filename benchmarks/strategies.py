"""What the strategies are worth on the tabletop, each beside plain training of equal budget; a table and curves.

    python benchmarks/strategies.py online cotrain curriculum --root runs/strategies

Every step is a `vla-agents` command that is printed before it runs; what is there already is not run again, and a run that
was broken off is resumed. Success is over 200 scenes that no training saw. Tables: ROOT/NAME.md, curves: ROOT/NAME.png.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
RECIPES = REPO / "examples" / "recipes"
NOISE = "--noise 0.3 --bursts 0.4"
METHODS = ("dagger", "takeover", "filtered", "awr")


def vla(text: str) -> str:
    """Run a command of ours; returns what it printed."""
    print(f"$ vla-agents {text}", flush=True)
    command = [sys.executable, "-m", "vla_agents.cli", *shlex.split(text)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def collected(folder: Path, options: str, **env_args: object) -> Path:
    """Episodes of the expert on one camera."""
    args = " ".join(f"{key}={value}" for key, value in env_args.items())
    if not (folder / "meta").exists():
        vla(f"collect --out {folder} {options} {NOISE} --env-args task=lift {args} 'cameras=[front]'")
    return folder


def trained(out: Path, options: str) -> Path:
    """A run, to its end."""
    if not (out / "done").exists():
        vla(f"train {options} --out {out} --threads 1" + (" --resume" if (out / "last").exists() else ""))
        (out / "done").touch()
    return out


def success(run: Path, difficulty: str = "medium", episodes: int = 200) -> tuple[float, float, float]:
    """Share of scenes solved, and its 95 % interval."""
    out = run.parent / f"{run.name}_eval"
    if not (out / "results.json").exists():
        env = f"task=lift difficulty={difficulty} 'cameras=[front]'"
        vla(
            f"eval --agent {run / 'last'} --env-args {env} --episodes {episodes} --videos 0 --resume --out {out}"
        )
    found = json.loads((out / "results.json").read_text())["overall"]
    return found["success"], found["low"], found["high"]


def answers(model: str, asked: Path, note: Path) -> float:
    """Share of questions answered right."""
    if not note.exists():
        note.write_text(vla(f"answers --model {model} --use {asked} --tolerance 5 --questions 400"))
    return float(note.read_text().split(": ")[1].split(" %")[0]) / 100


def percent(value: tuple[float, float, float]) -> str:
    """A share and its interval."""
    return f"{100 * value[0]:.1f} % ({100 * value[1]:.1f} - {100 * value[2]:.1f})"


def online(root: Path) -> list[tuple[str, ...]]:
    """A weak policy, and what each method makes of it."""
    few = collected(root / "few", "--episodes 30 --seed 500000")
    weak = trained(root / "weak", f"--config {RECIPES / 'qwen_oft.yaml'} --dataset {few} --steps 600")
    rows = [("", "success"), ("before: 30 demonstrations, 600 steps", percent(success(weak)))]
    # The same steps on the demonstrations alone: what more training would have done.
    more = f"--config {RECIPES / 'qwen_oft.yaml'} --init-from {weak} --dataset {few} --steps 800"
    rows.append(("800 steps more without acting", percent(success(trained(root / "online_none", more)))))
    for method in METHODS:
        start = f"--config {RECIPES / 'online.yaml'} --init-from {weak} --dataset {few}"
        run = trained(root / f"online_{method}", f"{start} --online.method {method}")
        rows.append((method, percent(success(run))))
    return rows


def cotrain(root: Path) -> list[tuple[str, ...]]:
    """What a VLM still knows after learning to act, with and without conversations."""
    lift = collected(root / "lift", "--episodes 1500")
    for name, options in (("questions", "--scenes 2000"), ("asked", "--scenes 400 --seed 77 --per-scene 2")):
        if not (root / name).exists():
            vla(f"questions --out {root / name} {options}")
    rows = [
        ("", "questions right", "success"),
        ("before", f"{100 * answers('tiny', root / 'asked', root / 'tiny.txt'):.1f} %", ""),
    ]
    both = f"--config {RECIPES / 'cotrain.yaml'} --dataset {lift} --language.use {root / 'questions'}"
    for name, options in (
        ("robot only", f"--config {RECIPES / 'qwen_oft.yaml'} --dataset {lift}"),
        ("co-trained", both),
    ):
        run = trained(root / name.replace(" ", "_"), options)
        right = answers(str(run / "last"), root / "asked", root / f"{run.name}.txt")
        rows.append((name, f"{100 * right:.1f} %", percent(success(run))))
    return rows


def curriculum(root: Path) -> list[tuple[str, ...]]:
    """Easy to hard; the same episodes mixed from the start; and hard ones alone: equal steps and episodes."""
    sets = [collected(root / d, "--episodes 500", difficulty=d) for d in ("easy", "medium", "hard")]
    hard = collected(root / "hard1500", "--episodes 1500", difficulty="hard")
    recipe = (RECIPES / "curriculum.yaml").read_text().replace("data/", f"{root}/")
    (root / "curriculum.yaml").write_text(recipe)
    plain = f"--config {RECIPES / 'qwen_oft.yaml'} --steps 600"
    runs = {
        "curriculum": f"--config {root / 'curriculum.yaml'}",
        "all three mixed": f"{plain} --dataset {' '.join(map(str, sets))}",
        "hard alone": f"{plain} --dataset {hard}",
    }
    rows = [("600 steps, 1,500 episodes", "success on hard")]
    for name, options in runs.items():
        rows.append((name, percent(success(trained(root / name.replace(" ", "_"), options), "hard"))))
    return rows


def draw(name: str, root: Path) -> None:
    """Curves of the runs of an experiment."""
    runs = [f"{root / f'online_{method}'}={method}" for method in METHODS]
    keys = ["success"]
    if name != "online":
        runs = [
            str(root / run) for run in {"cotrain": ("robot_only", "co-trained")}.get(name, ("curriculum",))
        ]
        keys = ["val_loss/actions", "val_loss"] if name == "cotrain" else ["stage_success"]
    command = [sys.executable, str(REPO / "benchmarks" / "curves.py"), *runs, "--key", *keys]
    subprocess.run([*command, "--out", str(root / f"{name}.png")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    experiments = {"online": online, "cotrain": cotrain, "curriculum": curriculum}
    parser.add_argument("names", nargs="+", choices=list(experiments))
    parser.add_argument("--root", type=Path, default=Path("runs/strategies"))
    args = parser.parse_args()
    args.root.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        header, *rows = experiments[name](args.root)
        lines = [header, ("---",) * len(header), *rows]
        table = "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"
        (args.root / f"{name}.md").write_text(table)
        print(table)
        draw(name, args.root)


if __name__ == "__main__":
    main()

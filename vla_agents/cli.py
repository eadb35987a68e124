"""The one command: `vla-agents COMMAND --help`. Each command is a few lines over the library."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

from vla_agents.config import from_dict, load_yaml
from vla_agents.errors import ConfigError, VlaAgentsError, suggest

T = TypeVar("T")


class _ToStderr(logging.StreamHandler):
    """To what `sys.stderr` is at the moment: a live display puts itself there and prints lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 done, 1 refused or a check failed, 130 interrupted)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] == "--version":
        import vla_agents

        sys.stdout.write(f"vla-agents {vla_agents.__version__}\n")
        return 0
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0 if args else 1
    command = COMMANDS.get(args[0])
    if command is None:
        sys.stderr.write(
            f"vla-agents: unknown command {args[0]!r}{suggest(args[0], COMMANDS)}\n\n{_overview()}"
        )
        return 1
    form = "%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=[_ToStderr()])
    try:
        return command.run(args[1:]) or 0
    except VlaAgentsError as error:
        sys.stderr.write(f"vla-agents {args[0]}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"vla-agents {args[0]}: interrupted\n")
        return 130


def parse(cls: type[T], args: Sequence[str], command: str) -> T:
    """A config from the command line; `--config FILE` gives the defaults, other flags override it.

    A class with a `selector` (see `TrainConfig`) is read in two turns: first the selector, e.g. `--policy`, which says what
    type other fields have; then everything.
    """
    import tyro

    rest, file = _take_config(list(args))
    data = load_yaml(file) if file else {}
    shown: type[Any] = cls
    selector = getattr(cls, "selector", "")
    if selector and isinstance(data, dict):
        data = _select(selector, rest, data, file)
        shown = _typed(cls, data, selector)
    kwargs: dict[str, Any] = {}
    if file:
        kwargs["default"] = _cast(from_dict(cls, data, where=str(file)), shown)
    found = tyro.cli(
        shown,
        args=rest,
        prog=f"vla-agents {command}",
        description=f"{(cls.__doc__ or '').strip()}\n\n--config FILE takes the values of an earlier run's run.yaml.",
        **kwargs,
    )
    return _cast(found, cls)


def _select(selector: str, args: list[str], data: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """`data` with the selector's value from the command line, where it is given there."""
    flag, given = f"--{selector}", None
    for index, arg in enumerate(args):
        if arg.startswith(f"{flag}="):
            given = arg.removeprefix(f"{flag}=")
        elif arg == flag and index + 1 < len(args):
            given = args[index + 1]
    if given is None:
        return data
    if data.get(selector, given) != given and "model" in data:
        raise ConfigError(
            f"{file} holds the options of {data[selector]!r}, and {flag} {given} asks for another {selector}",
            f"leave out {flag}, or take {selector} and model out of the file",
        )
    return data | {selector: given}


def _typed(cls: type[T], data: dict[str, Any], selector: str) -> type[T]:
    """`cls` with its fields typed as `data` wants them, for tyro, which reads types and defaults off a class."""
    typed: list[tuple[str, Any, Any]] = []
    for name, kind in cls.field_types(data).items():  # type: ignore[attr-defined]
        choice = get_origin(kind) is Literal
        default = field(default=data.get(name, getattr(cls, name))) if choice else field(default_factory=kind)
        typed.append((name, kind, default))
    return make_dataclass(cls.__name__, typed, bases=(cls,), frozen=True)  # type: ignore[return-value]


def _cast(config: Any, cls: type[T]) -> T:
    """The same values as an instance of a sub- or superclass."""
    if type(config) is cls:
        return config
    return cls(**{f.name: getattr(config, f.name) for f in fields(config)})


def _take_config(args: list[str]) -> tuple[list[str], Path | None]:
    for index, arg in enumerate(args):
        if arg == "--config":
            if index + 1 == len(args):
                raise ConfigError("--config needs a file", "e.g. --config runs/demo/train/run.yaml")
            return args[:index] + args[index + 2 :], Path(args[index + 1])
        if arg.startswith("--config="):
            return args[:index] + args[index + 1 :], Path(arg.removeprefix("--config="))
    return args, None


# ---- commands -------------------------------------------------------------------------------------------------
def _demo(args: Sequence[str]) -> None:
    from vla_agents.demo import DemoConfig, demo

    demo(parse(DemoConfig, args, "demo"))


def _collect(args: Sequence[str]) -> None:
    from vla_agents.collect.collect import CollectConfig, collect

    collect(parse(CollectConfig, args, "collect"))


def _train(args: Sequence[str]) -> None:
    from vla_agents.train_commands import train_command

    train_command(args)


def _search(args: Sequence[str]) -> None:
    from vla_agents.train_commands import search_command

    search_command(args)


def _eval(args: Sequence[str]) -> None:
    from vla_agents.eval_cli import main as evaluation

    evaluation(args)


def _serve(args: Sequence[str]) -> None:
    from vla_agents.serving.command import ServeConfig, serve

    serve(parse(ServeConfig, _named(args), "serve"))


def _pretrain_tiny(args: Sequence[str]) -> None:
    from rich.console import Console

    from vla_agents.train.pretrain_tiny import PretrainConfig, pretrain_tiny

    folder, metrics = pretrain_tiny(parse(PretrainConfig, args, "pretrain-tiny"))
    numbers = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())
    Console().print(f"{numbers}\nmodel: {folder}", highlight=False)


def _questions(args: Sequence[str]) -> None:
    from rich.console import Console

    from vla_agents.train.questions import QuestionsConfig, make_questions

    folder = make_questions(parse(QuestionsConfig, args, "questions"))
    Console().print(f"conversations: {folder}", highlight=False)


def _answers(args: Sequence[str]) -> None:
    from vla_agents.train.questions import AnswersConfig, ask

    ask(parse(AnswersConfig, args, "answers"))


def _finetune(args: Sequence[str]) -> None:
    _train(["--strategy", "online", *args])


@dataclass(frozen=True)
class InfoConfig:
    """Say what a dataset, a checkpoint or an env is; without a name, what is installed."""

    name: str = ""
    """A dataset folder, a checkpoint or run folder, or an env id."""


def _info(args: Sequence[str]) -> None:
    from vla_agents.info import print_info

    print_info(parse(InfoConfig, _named(args), "info").name)


def _doctor(args: Sequence[str]) -> int:
    from vla_agents.doctor.command import DoctorConfig, doctor

    return doctor(parse(DoctorConfig, args, "doctor"))


def _data(args: Sequence[str]) -> int:
    from vla_agents.data_cli import main as data

    return data(args)


def _robot(args: Sequence[str]) -> int:
    from vla_agents.robot_cli import main as robot

    return robot(args)


def _envs(args: Sequence[str]) -> None:
    from vla_agents.envs_cli import main as envs

    envs(args)


def _check_starvla(args: Sequence[str]) -> int:
    from vla_agents.policies.starvla.check import CheckConfig, check_starvla

    return 0 if check_starvla(parse(CheckConfig, args, "check-starvla")) else 1


@dataclass(frozen=True)
class CheckPolicyConfig:
    """Try out whether a checkpoint holds to what every policy must; one line per check."""

    name: str
    """A checkpoint folder, a run folder, or a hub id."""
    device: str | None = None
    """Where to put it; by default a GPU where there is one."""
    samples: int = 4
    """Random samples per batch."""


def _check_policy(args: Sequence[str]) -> int:
    from rich.console import Console

    from vla_agents.errors import PolicyCheckError
    from vla_agents.policies import check_policy
    from vla_agents.policies.checkpoint import load_policy

    config = parse(CheckPolicyConfig, _named(args), "check-policy")
    policy = load_policy(config.name, device=config.device)
    try:
        report = check_policy(policy, samples=config.samples)
    except PolicyCheckError as error:
        Console(stderr=True).print(error, highlight=False, markup=False, soft_wrap=True)
        report = error.report
    Console().print(str(report), highlight=False, markup=False, soft_wrap=True)
    return int(bool(report.failed))


def _named(args: Sequence[str]) -> list[str]:
    """`vla-agents info runs/demo` reads better than --name."""
    first, *rest = args or [""]
    return ["--name", first, *rest] if first and not first.startswith("-") else list(args)


def _convert(args: Sequence[str]) -> None:
    from rich.console import Console

    from vla_agents.policies.starvla.convert import ConvertConfig, run_convert

    folder = run_convert(parse(ConvertConfig, args, "convert"))
    Console().print(f"checkpoint: {folder}", highlight=False)


@dataclass(frozen=True)
class _Command:
    run: Callable[[Sequence[str]], int | None]
    help: str


COMMANDS: dict[str, _Command] = {
    "demo": _Command(
        _demo, "the whole loop on the tabletop: demonstrations, training, evaluation, a page to look at"
    ),
    "collect": _Command(_collect, "record episodes of an expert, a policy or chance into a dataset"),
    "train": _Command(_train, "train a policy on recorded episodes, by the strategy you name"),
    "finetune": _Command(
        _finetune, "let a policy act, correct it, and learn from that (train --strategy online)"
    ),
    "search": _Command(_search, "search hyper-parameters of a training run, by one process or many"),
    "eval": _Command(
        _eval, "evaluate an agent in an env or suite: table, JSON, page, videos; eval compare|merge|suites"
    ),
    "serve": _Command(
        _serve, "serve a policy to robots and evaluations, over the network or on this machine"
    ),
    "pretrain-tiny": _Command(
        _pretrain_tiny, "make the tiny Qwen3-VL and teach it to answer questions about pictures"
    ),
    "questions": _Command(_questions, "conversations about rendered scenes, to train and test a VLM on"),
    "answers": _Command(_answers, "how many questions a VLM, or that of a policy, answers right"),
    "convert": _Command(_convert, "write a StarVLA checkpoint in our format"),
    "check-starvla": _Command(
        _check_starvla, "compare our numbers with StarVLA's on a folder of its inputs and outputs"
    ),
    "data": _Command(_data, "look at, convert, merge, split and repair recorded datasets"),
    "robot": _Command(_robot, "find, set up, calibrate, check and move a robot"),
    "envs": _Command(
        _envs, "install simulators whose packages do not go with ours, each in its own Python environment"
    ),
    "check-policy": _Command(_check_policy, "try out whether a checkpoint holds to what every policy must"),
    "doctor": _Command(
        _doctor, "check this machine, or what a suite needs, and name the command for what is missing"
    ),
    "info": _Command(_info, "say what a dataset, a checkpoint or an env is, or what is installed"),
}


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return (
        "usage: vla-agents COMMAND [options]\n\n"
        + "\n".join(lines)
        + "\n\nvla-agents COMMAND --help explains a command's options.\n"
    )


if __name__ == "__main__":
    sys.exit(main())

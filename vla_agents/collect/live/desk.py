"""The operator's desk: keys, device, session, screen and page, put together for a command and taken apart again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from rich.console import Console

from vla_agents.agent import Agent
from vla_agents.arguments import make_agent
from vla_agents.collect.keys import KeyReader, can_read_keys
from vla_agents.collect.live.screen import Screen
from vla_agents.collect.live.session import Operated, Session
from vla_agents.collect.live.web import Page
from vla_agents.collect.teleop import Device, make_device
from vla_agents.embodiment import embodiment_of
from vla_agents.errors import ConfigError, EmbodimentMismatchError
from vla_agents.robots.env import RobotEnv
from vla_agents.takeover import Takeover

VIEWS = ("auto", "terminal", "web", "both", "none")
RESET_S, COUNTDOWN_S = 10.0, 3.0
_UNMANNED = ("", "expert", "replay")  # devices without a person


@dataclass
class Desk:
    """What `set_up` gives.

    Args:
        env: Whose episodes the person begins and ends.
        agent: Who acts.
        session: The person's wishes.
        say: Tells something.
        meter: Set from outside: free space and the like.
        saved: Set from outside: how many episodes are saved.
    """

    env: gymnasium.Env
    agent: Agent
    session: Session
    say: Callable[[str], None]
    meter: Callable[[], str] = field(default=lambda: "")
    saved: Callable[[], int] = field(default=lambda: 0)


def set_up(
    config: Any, env: gymnasium.Env, stack: contextlib.ExitStack, console: Console, title: str
) -> Desk:
    """Open keys, device and agent; the stack closes them.

    Args:
        config: A `CollectConfig` or `RunConfig`.
        env: Not reset yet.
        stack: Closes everything.
        console: Where to write where there is no screen.
        title: Of the screen.

    Raises:
        ConfigError: No task, a keyboard without a terminal, a view that does not exist.
        VlaAgentsError: What device and agent say.
    """
    real = isinstance(env.unwrapped, RobotEnv)
    manned = config.device not in _UNMANNED
    keys = KeyReader() if can_read_keys() else None
    if config.robot and not config.instructions and keys is None:
        raise ConfigError("nothing says what the task is", "give --instructions 'pick up the cup'")
    device = make_device(config.device, env, keys=keys, **config.device_args) if config.device else None
    agent = stack.enter_context(_agent(config, env, device, real=real))
    session = Session(
        embodiment_of(env).control_hz,
        keys=None if keys is None else keys.inbox(),
        device=device,
        instructions=config.instructions,
        ask=config.ask or bool(config.robot and not config.instructions),
        reset_time=(RESET_S if config.robot else 0.0) if config.reset_time is None else config.reset_time,
        countdown=(COUNTDOWN_S if manned or config.robot else 0.0)
        if config.countdown is None
        else config.countdown,
        saved=lambda: desk.saved(),
    )
    session.drives(agent)
    operated = Operated(env, session, paced=manned, open_ended=manned)
    desk = Desk(operated, agent, session, session.say)
    if keys is not None:
        stack.enter_context(keys)
    _show(config, desk, stack, console, title, has_keys=keys is not None)
    return desk


def _agent(config: Any, env: gymnasium.Env, device: Device | None, *, real: bool) -> Agent:
    """The device, or an agent, or an agent that the device takes over from."""
    if device is not None and not config.agent:
        return device
    name, options = config.agent or "expert", dict(config.agent_args)
    if real and name not in ("expert", "random"):
        options.setdefault("asynchronous", True)  # nothing may keep a robot waiting
    try:
        agent = make_agent(name, env, seed=config.seed, **options)
    except EmbodimentMismatchError as error:
        if not config.robot or not any("camera" in line for line in error.differences):
            raise
        remedy = "the cameras of a robot are chosen by --cameras NAME=SOURCE, their size by --camera-size HEIGHT WIDTH"
        raise EmbodimentMismatchError(error.ours, error.theirs, error.differences, remedy) from None
    return agent if device is None else Takeover(agent, device, embodiment=embodiment_of(env))


def _show(
    config: Any, desk: Desk, stack: contextlib.ExitStack, console: Console, title: str, *, has_keys: bool
) -> None:
    """Open screen and page."""
    if config.view not in VIEWS:
        raise ConfigError(f"view is {config.view!r}", f"one of {', '.join(VIEWS)}")
    note = ""
    if config.view in ("web", "both"):
        page = Page(desk.session, saved=lambda: desk.saved(), meter=lambda: desk.meter())
        stack.callback(page.close)
        note = f"live view: {page.url}"
    terminal = console.is_terminal and console.file is sys.stdout and has_keys
    if config.view in ("terminal", "both") and not terminal:
        raise ConfigError("the view 'terminal' needs a terminal", "use --view web, or run it in one (ssh -t)")
    if terminal and config.view not in ("web", "none"):
        screen = Screen(
            desk.session,
            title=title,
            total=config.episodes,
            saved=lambda: desk.saved(),
            meter=lambda: desk.meter(),
            note=note,
        )
        stack.enter_context(screen)
    else:
        desk.say = lambda text: console.print(text, soft_wrap=True, markup=False, highlight=False)
        if note:
            desk.say(note)
    if config.sound:
        desk.session.bell = lambda: (sys.stdout.write("\a"), sys.stdout.flush())  # type: ignore[assignment, return-value]

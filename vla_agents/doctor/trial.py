"""The check that leaves no doubt: the environment is made, reset and moved once, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vla_agents.doctor.checks import Row, Target
from vla_agents.doctor.probe import ProbeError, ask
from vla_agents.doctor.remedies import pip_install, python, sudo
from vla_agents.envs.libero.brightness import FRAME_MEANS, REMEDY, brightness_problem
from vla_agents.eval.suites import SUITES

_TRIAL = """
import time
start = time.monotonic()
from vla_agents.envs.libero.brightness import frame_means
from vla_agents.envs.vector import make_env
from vla_agents.errors import VlaAgentsError
name, options, play = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "play"
try:
    env = make_env(name, **options)
    told = {"info": {}, "means": {}}
    if play:
        env.action_space.seed(0)
        obs, info = env.reset(seed=0)
        env.step(env.action_space.sample())
        told["info"] = {key: info[key] for key in ("renderer", "mujoco") if key in info}
        if isinstance(obs, dict):
            told["means"] = frame_means(obs.get("images", {}))
    answer(told | {"seconds": time.monotonic() - start})
except VlaAgentsError as error:
    answer({"problem": error.problem, "remedy": error.remedy})
except Exception as error:
    first = (str(error).splitlines() or [""])[0][:200]
    answer({"problem": f"{type(error).__name__}: {first}", "remedy": ""})
"""
TIMEOUT_S = 600.0  # the first scene of a simulator may take minutes on a busy machine


def trial(target: Target) -> Iterator[Row]:
    """One reset and one step; LIBERO's first picture against what it must look like.

    An environment that is none of our suites' is only made: who knows what its reset would move.
    """
    options: dict[str, Any] = dict(SUITES.get(target.suite).env_args) if target.suite else {}
    play = any(SUITES.get(suite).env == target.env for suite in SUITES)
    try:
        told = ask(_TRIAL, target.env, json.dumps(options), "play" if play else "make", timeout=TIMEOUT_S)
    except ProbeError as error:
        yield Row("trial", "missing", f"{target.env}: {error}")
        return
    if "problem" in told:
        yield Row("trial", "missing", f"{target.env}: {told['problem']}", **_as_typed(told["remedy"]))
        return
    about = ", ".join(f"{key} {value}" for key, value in told["info"].items())
    did = "made, reset and moved" if play else "made (not reset: it is none of our suites')"
    found = f"{target.env} {did} in {told['seconds']:.1f} s" + (f" ({about})" if about else "")
    yield Row("trial", "ok", found)
    if target.extra == "libero" and told["means"]:
        yield from _brightness(options.get("suite", "libero_object"), told["means"])


def _as_typed(remedy: str) -> dict[str, str]:
    """An error's remedy as `command`, with this Python's pip, or as `advice`."""
    if remedy.startswith("pip "):
        return {"command": f"{python()} -m {remedy}"}
    if remedy.startswith("apt-get "):
        return {"command": f"{sudo()}{remedy}"}
    if remedy.startswith("vla-agents doctor"):  # that is what runs here
        return {}
    return {"command": remedy} if remedy.startswith("vla-agents ") else {"advice": remedy}


def _brightness(suite: str, means: dict[str, float]) -> Iterator[Row]:
    if suite not in FRAME_MEANS:
        return
    problem = brightness_problem(suite, means)
    shown = ", ".join(f"{camera} {mean:.1f}" for camera, mean in means.items())
    if problem:
        yield Row("LIBERO's picture", "missing", problem, pip_install(REMEDY))
    else:
        yield Row("LIBERO's picture", "ok", f"as bright as the published data (mean grey level: {shown})")

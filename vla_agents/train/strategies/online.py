"""Learning from what the policy itself runs into: rounds of acting in an env or on a robot, and of training on the replay
buffer (`.buffer`), in which the demonstrations keep their share.

    dagger    what the expert would have done in the states the policy came to (Ross et al. 2011)
    takeover  what a person did after taking over (HG-DAgger, Kelly et al. 2019): only those stretches are learnt
    filtered  own episodes that succeeded
    awr       own episodes, a window drawn exp(advantage / temperature) times as often (Peng et al. 2019,
              "Advantage-Weighted Regression"); see `.advantages`

Round r is played with the weights of step r * (steps / rounds). The rounds played are a function of the step, their
episodes of seeds and weights, so a resumed run draws what the unbroken one would have drawn; a round that is on the disk
already is not played again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_agents.agent import Agent, ExpertAgent, PolicyAgent
from vla_agents.bodies import Body, choose_body
from vla_agents.data import Draws, WindowDataset
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.vector import make_env, make_vec
from vla_agents.errors import ConfigError, TrainingError
from vla_agents.policies.policy import Policy
from vla_agents.train.config import TrainConfig
from vla_agents.train.strategies.advantages import advantage_weights
from vla_agents.train.strategies.buffer import Buffer, Env
from vla_agents.train.strategies.correct import Corrected, Exploring, Mixed, ScriptedHuman
from vla_agents.train.strategies.ingredients import Evaluate, Ingredients
from vla_agents.train.strategy import BehaviourCloning

_log = logging.getLogger(__name__)


class Pool:
    """Windows of several datasets of one body, counted through."""

    def __init__(self, parts: Sequence[WindowDataset]) -> None:
        self.parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self.step_of = np.concatenate([part.step_of for part in self.parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def get_batch(self, indices: np.ndarray) -> dict[str, Any]:
        """See `WindowDataset.get_batch`."""
        wanted = np.asarray(indices, np.int64)
        which = np.searchsorted(self._starts, wanted, side="right") - 1
        found: dict[str, Any] = {}
        for number in np.unique(which):
            at = np.flatnonzero(which == number)
            _put(found, self.parts[number].get_batch(wanted[at] - self._starts[number]), at, len(wanted))
        return found


def _put(whole: dict[str, Any], part: dict[str, Any], at: np.ndarray, count: int) -> None:
    for name, value in part.items():
        if isinstance(value, dict):
            _put(whole.setdefault(name, {}), value, at, count)
        elif isinstance(value, np.ndarray):
            whole.setdefault(name, np.zeros((count, *value.shape[1:]), value.dtype))[at] = value
        else:
            texts = whole.setdefault(name, [""] * count)
            for place, text in zip(at, value, strict=True):
                texts[place] = text


class Online(BehaviourCloning):
    """Rounds of acting, and behaviour cloning of what is in the buffer.

    Args:
        policy: Acts and learns.
        demonstrations: Windows that keep their share.
        held_out: Windows for the validation loss.
        buffer: Where rounds go.
        load: Windows of a round's dataset.
        config: The run.
        **draws: Of `BehaviourCloning`.

    Attributes:
        round: The last one in the buffer; -1 before the first step.
    """

    def __init__(
        self,
        policy: Policy,
        demonstrations: WindowDataset,
        held_out: Any,
        buffer: Buffer,
        load: Any,
        config: TrainConfig,
        **draws: Any,
    ) -> None:
        super().__init__(demonstrations, held_out, **draws)
        self._policy, self._demonstrations = policy, demonstrations
        self.buffer, self._load, self._draws = buffer, load, draws
        self.settings = config.online
        self.per_round = -(-config.steps // self.settings.rounds)
        self.round = -1
        self._windows: list[WindowDataset] = []

    def batches(self, step: int, count: int, rank: int = 0, world: int = 1) -> list[Any]:
        """Act where a round is due, then `count` micro-batches."""
        if world > 1:
            raise ConfigError(
                "--strategy online runs in one process", "start it without torchrun or accelerate"
            )
        wanted = step // self.per_round
        if wanted != self.round:
            self._reach(wanted)
        return super().batches(step, count, rank, world)

    def _reach(self, wanted: int, *, play: bool = True) -> None:
        """Have the rounds up to `wanted` in the buffer; the last one is played with the weights of this moment."""
        self.close()
        for number in range(self.round + 1, wanted + 1):
            if not self.buffer.is_complete(number):
                if number < wanted or not play:
                    raise TrainingError(
                        f"round {number} is missing in {self.buffer.folder}, and its weights are gone",
                        "put the buffer back where it was, or start anew",
                    )
                self._play(number)
            if self.buffer.saved(number):
                self._windows.append(self._load(self.buffer.path(number)))
        self.round = wanted
        self.train = Pool([self._demonstrations, *self._windows])  # type: ignore[assignment]
        self._order = Draws(self._weights(), self.batch_size, self.seed)

    def _play(self, number: int) -> None:
        was_training = self._policy.training
        with (
            torch.random.fork_rng()
        ):  # a round that is on the disk leaves no trace in the random state either
            self.buffer.play(number)
        self._policy.train(was_training)
        played = self.buffer.played(number)
        rate = np.mean([line["success"] for line in played])
        _log.info(
            "round %d: %d episodes played, success %.2f, %d kept",
            number,
            len(played),
            rate,
            self.buffer.saved(number),
        )

    def _weights(self) -> np.ndarray:
        """How often each window is drawn; demonstrations and buffer have their shares."""
        first, weight = self._draws["first_steps"], self._draws["first_steps_weight"]
        demos = np.where(self._demonstrations.step_of < first, weight, 1.0)
        own = np.concatenate([self._useful(part) for part in self._windows] or [np.zeros(0)])
        own *= np.where(self.train.step_of[len(demos) :] < first, weight, 1.0)
        share = self.settings.demonstrations if own.any() else 1.0
        parts = [demos * share / demos.sum(), own * (1 - share) / own.sum() if own.any() else own]
        return np.concatenate(parts)

    def _useful(self, part: WindowDataset) -> np.ndarray:
        """float64 (N,): how often windows of a round are drawn beside one another."""
        if self.settings.method == "takeover":
            return corrected(part).astype(float)
        if self.settings.method == "awr":
            settings = self.settings
            return advantage_weights(
                self._windows, part, settings.discount, settings.temperature, settings.most_weight
            )
        return np.ones(len(part))

    def state_dict(self) -> dict[str, Any]:
        """The round; the buffer itself is on the disk."""
        return {"round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on: read the rounds that were played, which are all complete."""
        if state["round"] >= 0:
            self._reach(state["round"], play=False)

    def close(self) -> None:
        """End the processes that load, and the env."""
        super().close()
        self.buffer.close()


def corrected(windows: WindowDataset) -> np.ndarray:
    """bool (N,): windows in which a person drives from the first action to the last one inside the episode."""
    driven = windows.intervened
    ends = np.minimum(windows.step_of + windows.horizon, windows.lengths[windows.episode_of])
    total = np.concatenate([[0], np.cumsum(driven)])
    rows = np.arange(len(windows))
    length = ends - windows.step_of
    found: np.ndarray = total[rows + length] - total[rows] == length
    return found


class WithRounds:
    """Closed-loop evaluation, and beside it which round it is, and what the last one came to."""

    def __init__(self, evaluate: Evaluate | None, online: Online) -> None:
        self._evaluate, self._online = evaluate, online

    def __call__(self, policy: Any, step: int) -> dict[str, float]:
        """The metrics of both."""
        found = {} if self._evaluate is None else dict(self._evaluate(policy, step))
        buffer, number = self._online.buffer, self._online.round
        played = buffer.played(max(0, number))
        rate = float(np.mean([line["success"] for line in played])) if played else 0.0
        kept = sum(buffer.saved(n) for n in range(number + 1))
        return found | {"round": float(number), "played_success": rate, "buffer_episodes": float(kept)}


def build(parts: Ingredients) -> Online:
    """As a run's configuration says."""
    config, settings = parts.config, parts.config.online
    if not config.env:
        raise ConfigError(
            "--strategy online acts in an env, and none is given", "--env, e.g. vla_agents/Tabletop-v0"
        )
    if not isinstance(parts.train, WindowDataset):
        raise ConfigError(
            "--strategy online takes datasets of one body, without weights", "leave out mix and weights"
        )
    if settings.rounds > config.steps:
        raise ConfigError(f"{settings.rounds} rounds in {config.steps} steps", "at least a step per round")
    buffer = Buffer(
        Path(config.out) / "buffer",
        partial(_make_env, config),
        partial(_make_agent, parts.policy, config),
        episodes=settings.episodes,
        num_envs=settings.num_envs,
        seed=settings.seed,
        only_success=settings.method == "filtered",
        max_steps=settings.max_steps,
        retries=settings.retries,
    )
    online = Online(parts.policy, parts.train, parts.held_out, buffer, parts.load, config, **parts.draws())
    parts.evaluate = WithRounds(parts.evaluate, online)
    return online


def _make_env(config: TrainConfig) -> Env:
    if config.online.num_envs == 1:
        return make_env(config.env, **config.env_args)
    return make_vec(config.env, config.online.num_envs, **config.env_args)


def _make_agent(policy: Policy, config: TrainConfig, env: Env, number: int) -> Agent:
    """Who acts in a round."""
    settings, there = config.online, embodiment_of(env)
    body = Body(policy.embodiment)
    if policy.bodies:
        body = choose_body(policy.bodies, policy.embodiment, there, policy="policy")
    body.embodiment.require(there, ours="policy", theirs=f"env {config.env}")
    own = PolicyAgent(policy, transforms=body.transforms, embodiment=body.embodiment)
    if settings.method == "dagger":
        return Mixed(own, ExpertAgent(env), settings.expert_share ** (number + 1))
    if settings.method == "takeover":
        return _with_human(own, env, config)
    return Exploring(own, there, settings.exploration)


def _with_human(own: PolicyAgent, env: Env, config: TrainConfig) -> Agent:
    settings, there = config.online, embodiment_of(env)
    if settings.human == "expert":
        human = ScriptedHuman(
            ExpertAgent(env), there, settings.disagreement, settings.patience, settings.hold
        )
        return Corrected(own, human)
    from vla_agents.collect.teleop import make_device
    from vla_agents.takeover import Takeover

    if settings.num_envs != 1:
        raise ConfigError("a person can look after one robot", "online.num_envs=1")
    return Takeover(own, make_device(settings.human, env), embodiment=there)

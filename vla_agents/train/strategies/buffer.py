"""The replay buffer on the disk: a dataset per round, written episode by episode, so that nothing is lost when a robot, a
simulator or the power dies.

    buffer/round_000/           a dataset like any other (LeRobot): `vla-agents data view buffer/round_000`
    buffer/round_000.jsonl      a line per episode played: seed, success, steps
    buffer/round_000.done       written when the round is complete

Episodes are played in waves of as many as there are envs, each a function of its seeds and the policy alone. Where a round
was broken off, its last wave is played again and what is on the disk already is not written twice: the dataset is that of
an unbroken round, to the bit.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from vla_agents.agent import Agent
from vla_agents.collect.recorder import Recorder
from vla_agents.data import create_dataset, open_dataset
from vla_agents.embodiment import embodiment_of
from vla_agents.errors import DatasetNotFoundError, RenderingError, RobotError, TrainingError, VlaAgentsError
from vla_agents.observations import Observation
from vla_agents.rollout import EpisodeResult, Listener, StepEvent, rollout
from vla_agents.train.strategies.correct import Told

_log = logging.getLogger(__name__)
Env = gymnasium.Env | VectorEnv


class Buffer:
    """Rounds of episodes.

    Args:
        folder: Where.
        make_env: A new env, single or vector; called again where one has died.
        make_agent: Who acts in it.
        episodes: Per round.
        num_envs: Per wave.
        seed: Of the first episode of round 0; round r begins `episodes` later for each round before it.
        only_success: Keep episodes that succeed, and no others.
        max_steps: See `rollout`.
        retries: How often in a row the env may die.
    """

    def __init__(
        self,
        folder: Path,
        make_env: Callable[[], Env],
        make_agent: Callable[[Env, int], Agent],
        *,
        episodes: int,
        num_envs: int,
        seed: int,
        only_success: bool = False,
        max_steps: int | None = None,
        retries: int = 3,
    ) -> None:
        self.folder = folder
        self._make_env, self._make_agent = make_env, make_agent
        self._episodes, self._num_envs, self._seed = episodes, num_envs, seed
        self._only_success, self._max_steps, self._retries = only_success, max_steps, retries
        self._env: Env | None = None

    def path(self, number: int) -> Path:
        """The dataset of a round."""
        return self.folder / f"round_{number:03d}"

    def is_complete(self, number: int) -> bool:
        """Whether a round was played to its end."""
        return self.path(number).with_suffix(".done").is_file()

    def played(self, number: int) -> list[dict[str, Any]]:
        """What is known of a round's episodes: seed, success, steps; without those of a wave that was broken off."""
        file = self.path(number).with_suffix(".jsonl")
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def saved(self, number: int) -> int:
        """Episodes of a round on the disk."""
        try:
            return len(open_dataset(self.path(number)))
        except DatasetNotFoundError:
            return 0

    def play(self, number: int) -> None:
        """Play what is missing of a round.

        Raises:
            TrainingError: The env died too often in a row; what was played is on the disk.
        """
        first = self._seed + number * self._episodes
        seeds = list(range(first, first + self._episodes))
        deaths = 0
        while not self.is_complete(number):
            done = len(self.played(number))
            if done >= len(seeds):
                self.path(number).with_suffix(".done").touch()
                return
            try:
                self._wave(number, seeds[done : done + self._num_envs])
                deaths = 0
            except (KeyboardInterrupt, SystemExit):
                self.close()
                raise
            except Exception as error:
                self.close()
                deaths += 1
                if isinstance(error, VlaAgentsError) and not isinstance(error, RobotError | RenderingError):
                    raise  # it would be the same the next time
                if deaths > self._retries:
                    raise TrainingError(
                        f"the env died {deaths} times in a row ({type(error).__name__}: {error})",
                        f"{done} of {len(seeds)} episodes of round {number} are in {self.path(number)}; "
                        "mend it and go on with --resume",
                    ) from error
                _log.warning("the env died (%s: %s); made anew", type(error).__name__, error)

    def _wave(self, number: int, seeds: list[int]) -> None:
        """Some episodes side by side, all from the first step."""
        if self._env is None:
            self._env = self._make_env()
        path = self.path(number)
        agent = self._make_agent(self._env, number)
        there = {int(seed) for seed in self._seeds_on_disk(path)}
        writer = create_dataset(path, embodiment_of(self._env), resume=path.exists())
        with contextlib.closing(writer):
            recorder = Recorder(
                writer,
                only_success=self._only_success,
                slots=getattr(self._env, "num_envs", 1),
                metadata={"online_round": number},
            )
            fresh = _Only(Told(recorder, agent), {seed for seed in seeds if seed not in there})
            results = rollout(self._env, agent, seeds, [fresh], max_steps=self._max_steps)
        with path.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            for result in results:
                line = {"seed": result.seed, "success": result.success, "steps": result.steps}
                file.write(json.dumps(line) + "\n")

    def _seeds_on_disk(self, path: Path) -> list[int]:
        try:
            reader = open_dataset(path)
        except DatasetNotFoundError:
            return []
        last = range(max(0, len(reader) - self._num_envs), len(reader))  # a wave is at most so long
        return [reader.read(index, images=False).metadata["seed"] for index in last]

    def close(self) -> None:
        """Close the env, whatever state it is in."""
        if self._env is not None:
            with contextlib.suppress(Exception):
                self._env.close()
            self._env = None


class _Only(Listener):
    """Hands on the episodes of some seeds."""

    def __init__(self, listener: Listener, seeds: set[int]) -> None:
        self._listener, self._seeds = listener, seeds
        self._open: set[int] = set()

    def on_reset(self, slot: int, seed: int, obs: Observation, info: dict[str, Any]) -> None:
        if seed in self._seeds:
            self._open.add(slot)
            self._listener.on_reset(slot, seed, obs, info)

    def on_step(self, slot: int, step: StepEvent) -> None:
        if slot in self._open:
            self._listener.on_step(slot, step)

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        if slot in self._open:
            self._open.remove(slot)
            self._listener.on_end(slot, result)

    def on_abort(self) -> None:
        self._listener.on_abort()

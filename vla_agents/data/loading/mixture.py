"""Several datasets at once, of different bodies, cameras and sizes, each with its share.

Every dataset is brought to one common body (`vla_agents.common_body`): what it lacks is zero, and masks say so. Each
keeps its own embodiment and statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vla_agents.bodies import Body
from vla_agents.common_body import IntoCommonBody, common_body
from vla_agents.data.loading.orders import shares
from vla_agents.data.loading.windows import WindowDataset
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.normalize import Normalizer, StatsAccumulator, VectorStats


class Mixture:
    """Windows of several datasets, counted through; used like one `WindowDataset`.

    Args:
        parts: Name -> windows. All of one horizon, history, stride and rate (`WindowDataset(fps=...)` resamples).
        weights: Share of each in the samples; None: as large as it is. See `Draws` and `Epochs`.
        statistics: `"pooled"`: values keep their units, statistics are taken over all datasets that have a part;
            `"per_dataset"`: each dataset is normalised by its own, and the common body has normalised values.
        modes: Part name -> mode of normalisation, for `"per_dataset"` (see `Normalizer`).

    Attributes:
        names: Of the parts.
        embodiment: The common body.
        members: Name -> the way from a part's body into the common one.
        shares: float64 (E,): of the samples.
        dataset_of: int64 (N,): which part each window is of.
        step_of: int64 (N,): its index within its episode.
    """

    def __init__(
        self,
        parts: Mapping[str, WindowDataset],
        weights: Sequence[float] | None = None,
        *,
        statistics: Literal["pooled", "per_dataset"] = "pooled",
        modes: Mapping[str, str] | None = None,
    ) -> None:
        if not parts or statistics not in ("pooled", "per_dataset"):
            raise ConfigError(
                f"a mixture of {len(parts)} datasets with statistics {statistics!r}",
                "at least one dataset; pooled or per_dataset",
            )
        _check_alike(parts)
        normalizers = None
        if statistics == "per_dataset":
            normalizers = _normalizers(parts, modes or {})
        ways = common_body([part.embodiment for part in parts.values()], normalizers)
        self.statistics_mode = statistics
        self.members: dict[str, IntoCommonBody] = dict(zip(parts, ways, strict=True))
        self.embodiment: Embodiment = ways[0].target
        self._set_parts(parts, weights)

    def _set_parts(self, parts: Mapping[str, WindowDataset], weights: Sequence[float] | None) -> None:
        self.names, self.parts = list(parts), list(parts.values())
        self.sizes = np.array([len(part) for part in self.parts], np.int64)
        if weights is not None and len(weights) != len(self.parts):
            raise ConfigError(
                f"{len(weights)} weights for {len(self.parts)} datasets", "give one weight per dataset"
            )
        self.shares = shares(self.sizes if weights is None else weights)
        self._starts = np.cumsum(self.sizes) - self.sizes
        self.dataset_of = np.repeat(np.arange(len(self.parts)), self.sizes)
        self.step_of = np.concatenate([part.step_of for part in self.parts])
        self.horizon, self.history = self.parts[0].horizon, self.parts[0].history

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def get_batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Several windows at once, as `WindowDataset.get_batch`, of the common body.

        Returns:
            Beside what that returns: `dataset` int64 (B,), `state_mask` bool (B, S) and `action_mask` bool (B, D): which
            values the window's body has, and `image_mask` {camera: bool (B,)}: which cameras.
        """
        wanted = np.asarray(indices, np.int64)
        which = self.dataset_of[wanted]
        batch: dict[str, Any] = {}
        for number in np.unique(which):
            at = np.flatnonzero(which == number)
            part = self._part_of_batch(int(number), wanted[at] - self._starts[number])
            if len(at) == len(wanted):
                batch = part
            else:
                _scatter(batch, part, at, len(wanted))
        return batch

    def describe(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """Where windows come from, in words."""
        which = self.dataset_of[np.asarray(indices, np.int64)]
        local = np.asarray(indices, np.int64) - self._starts[which]
        return [self.parts[k].describe([row])[0] for k, row in zip(which, local, strict=True)]

    def _part_of_batch(self, number: int, local: np.ndarray) -> dict[str, Any]:
        way = self.members[self.names[number]]
        found = self.parts[number].get_batch(local)
        count = len(local)
        found = way.observation(found) | {"action": way.action(found["action"])}
        if not way.source.cameras:  # nothing that says how many there are
            lead = (count,) if self.history == 1 else (count, self.history)
            for camera in self.embodiment.cameras:
                found["images"][camera.name] = np.zeros((*lead, camera.height, camera.width, 3), np.uint8)
        return found | {
            "dataset": np.full(count, number, np.int64),
            "state_mask": np.tile(way.mask("state"), (count, 1)),
            "action_mask": np.tile(way.mask("action"), (count, 1)),
            "image_mask": {name: np.full(count, has) for name, has in way.camera_mask().items()},
        }

    def chunks(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The actions of several windows, of the common body, without their pictures (see `WindowDataset.chunks`)."""
        wanted = np.asarray(indices, np.int64)
        action = np.zeros((len(wanted), self.horizon, self.embodiment.action_dim), np.float32)
        mask = np.zeros((len(wanted), self.horizon), bool)
        for number in np.unique(self.dataset_of[wanted]):
            at = np.flatnonzero(self.dataset_of[wanted] == number)
            values, mask[at] = self.parts[number].chunks(wanted[at] - self._starts[number])
            action[at] = self.members[self.names[number]].action(values)
        return action, mask

    @property
    def lengths(self) -> np.ndarray:
        """int64 (E,): steps per episode."""
        return np.concatenate([part.lengths for part in self.parts])

    def split(self, validation_fraction: float, seed: int = 0) -> tuple[Mixture, Mixture]:
        """Two views `(training, validation)`, each dataset split by whole episodes; the shares stay."""
        pairs = [part.split(validation_fraction, seed) for part in self.parts]
        training, validation = (dict(zip(self.names, side, strict=True)) for side in zip(*pairs, strict=True))
        return self._view(training), self._view(validation)

    def _view(self, parts: Mapping[str, WindowDataset]) -> Mixture:
        view = object.__new__(Mixture)
        view.__dict__.update(self.__dict__)
        view._set_parts(parts, self.shares)  # type: ignore[arg-type]
        return view

    def bodies(self) -> dict[str, Body]:
        """Each dataset's body, and what lies between it and the windows: what a checkpoint needs for acting."""
        return {
            name: Body(body.embodiment, (*body.transforms, self.members[name]))
            for name, part in zip(self.names, self.parts, strict=True)
            for body in part.bodies().values()
        }

    # ---- statistics ---------------------------------------------------------------------------------------
    def statistics_of(self, name: str) -> dict[str, VectorStats]:
        """`"state"` and `"action"` of one dataset, in its own units."""
        return self.parts[self.names.index(name)].statistics()

    def statistics(self) -> dict[str, VectorStats]:
        """`"state"` and `"action"` of the common body: of each part over the datasets that have it, or (where each is
        normalised by its own) those of values that are normalised already."""
        found = {}
        for vector, size in (("state", self.embodiment.state_dim), ("action", self.embodiment.action_dim)):
            if size and self.statistics_mode == "per_dataset":
                found[vector] = VectorStats.identity(size)
            elif size:
                found[vector] = self._pooled(vector)
        return found

    def _pooled(self, vector: str) -> VectorStats:
        rows = [
            (way, part.rows_of(vector))
            for way, part in zip(self.members.values(), self.parts, strict=True)
            if getattr(way.source, vector)
        ]
        pieces = []
        for slot in getattr(self.embodiment, vector):
            gathered = StatsAccumulator(slot.size)
            for way, values in rows:
                for name, where in getattr(way.source, f"{vector}_slices")().items():
                    if way.slots[vector][name] == slot.name:
                        gathered.update(values[:, where], where=f"{vector} {name!r}")
            pieces.append(gathered.finish())
        return VectorStats(
            count=max(piece.count for piece in pieces),
            **{
                field: tuple(value for piece in pieces for value in getattr(piece, field))
                for field in ("mean", "std", "min", "max", "q01", "q99")
            },
        )


def _check_alike(parts: Mapping[str, WindowDataset]) -> None:
    first_name, first = next(iter(parts.items()))
    for name, part in parts.items():
        for what in ("horizon", "history", "stride"):
            if getattr(part, what) != getattr(first, what):
                raise ConfigError(
                    f"{what} is {getattr(first, what)} in {first_name!r} and {getattr(part, what)} in {name!r}",
                    "make all windows alike",
                )
        ours, theirs = first.embodiment.control_hz, part.embodiment.control_hz
        if abs(ours - theirs) > 1e-6:
            raise ConfigError(
                f"dataset {first_name!r} is at {ours:g} Hz, {name!r} at {theirs:g} Hz: their steps do not mean the same",
                "resample them to one rate: fps=..., or leave one out",
            )


def _normalizers(parts: Mapping[str, WindowDataset], modes: Mapping[str, str]) -> list[dict[str, Normalizer]]:
    """Of each dataset, from its own statistics."""
    known = {p.name for part in parts.values() for p in (*part.embodiment.state, *part.embodiment.action)}
    for name in modes:
        if name not in known | {"*"}:
            raise UnknownNameError("part in normalisation modes", name, known)
    found = []
    for part in parts.values():
        made = {}
        for vector, stats in part.statistics().items():
            own = getattr(part.embodiment, vector)
            mine = {n: m for n, m in modes.items() if n == "*" or n in {p.name for p in own}}
            made[vector] = Normalizer(own, stats, mine)
        found.append(made)
    return found


def _scatter(batch: dict[str, Any], part: dict[str, Any], at: np.ndarray, count: int) -> None:
    """Put the rows of `part` at their places in a batch of `count`."""
    for name, value in part.items():
        if isinstance(value, dict):
            _scatter(batch.setdefault(name, {}), value, at, count)
        elif isinstance(value, np.ndarray):
            whole = batch.setdefault(name, np.zeros((count, *value.shape[1:]), value.dtype))
            whole[at] = value
        else:
            texts = batch.setdefault(name, [""] * count)
            for place, text in zip(at, value, strict=True):
                texts[place] = text

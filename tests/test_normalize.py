"""Statistics and normalisers: exact, mergeable, invertible, constant dimensions and NaN rows included."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_env import BODY

from vla_agents.embodiment import Part
from vla_agents.errors import (
    ConfigError,
    UnknownNameError,
)
from vla_agents.normalize import (
    Normalizer,
    StatsAccumulator,
    VectorStats,
    load_normalizers,
    save_normalizers,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not there")


def rows(count: int = 200, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(count, 4)) * [1, 10, 0, 1] + [0, 5, 3, 0]
    data[:, 3] = 0.0
    data[: max(1, count // 200), 3] = 0.5  # moves in the outer half percent only
    return data.astype(np.float32)


def stats_of(data: np.ndarray) -> VectorStats:
    accumulator = StatsAccumulator(data.shape[1])
    accumulator.update(data)
    return accumulator.finish()


PARTS = (Part("a", 2, "other"), Part("b", 2, "other"))


def test_statistics_are_exact() -> None:
    data = rows()
    found = stats_of(data)
    assert found.count == 200
    for name, expected in {
        "mean": data.astype(float).mean(0),
        "std": data.astype(float).std(0),
        "min": data.min(0),
        "max": data.max(0),
        "q01": np.quantile(data, 0.01, axis=0),
        "q99": np.quantile(data, 0.99, axis=0),
    }.items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-6, atol=1e-7)


def test_merged_statistics_are_those_of_the_whole() -> None:
    data = rows(300)
    parts = [StatsAccumulator(4) for _ in range(3)]
    for part, block in zip(parts, np.split(data, [10, 200]), strict=True):
        for row in block[:5]:
            part.update(row)
        part.update(block[5:])
    for part in parts[1:]:
        parts[0].merge(part)
    assert dataclasses.asdict(parts[0].finish()) == dataclasses.asdict(stats_of(data))
    with pytest.raises(ConfigError, match="cannot merge"):
        parts[0].merge(StatsAccumulator(3))


def test_rows_that_are_not_finite() -> None:
    data = rows()
    dirty = np.insert(data, [3, 50], [[0, np.nan, 0, 0], [np.inf, 0, 0, 0]], axis=0)
    accumulator = StatsAccumulator(4)
    with pytest.raises(ConfigError, match=r"episode 7: 2 row\(s\) are not finite, first row 3"):
        accumulator.update(dirty, where="episode 7")
    accumulator.update(dirty, nonfinite="skip")
    assert accumulator.skipped == 2
    assert accumulator.finish() == stats_of(data)
    with pytest.raises(ConfigError, match="5 values, expected 4"):
        accumulator.update(np.zeros((2, 5)))
    with pytest.raises(ConfigError, match="no rows"):
        StatsAccumulator(4).finish()


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "q01_q99", "none"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_normaliser_round_trip_and_closed_form(mode: str, kind: str) -> None:
    import torch

    data = rows()
    normalizer = Normalizer(PARTS, stats_of(data), {"*": mode})
    given = torch.from_numpy(data) if kind == "torch" else data
    there = normalizer.normalize(given)
    assert type(there) is type(given) and there.dtype == given.dtype
    np.testing.assert_allclose(np.asarray(normalizer.unnormalize(there)), data, atol=2e-6)
    out = np.asarray(there)
    assert np.isfinite(out).all()
    if mode == "none":
        np.testing.assert_array_equal(out, data)
        return
    assert (out[:, 2] == 0).all(), "a constant dimension becomes 0 ..."
    assert (np.asarray(normalizer.unnormalize(there))[:, 2] == 3).all(), "... and comes back exactly"
    if mode == "mean_std":
        np.testing.assert_allclose(out[:, :2].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(out[:, :2].std(0), 1, atol=1e-5)
    elif mode == "min_max":
        np.testing.assert_allclose([out[:, :2].min(0), out[:, :2].max(0)], [[-1, -1], [1, 1]], atol=1e-5)
    else:
        inside = (np.abs(out[:, :2]) <= 1).mean(0)
        assert (inside >= 0.97).all() and (inside < 1).all(), "the central 98 %, nothing clipped"
        np.testing.assert_allclose([out[:, 3].min(), out[:, 3].max()], [-1, 1], atol=1e-6)


def test_modes_per_part() -> None:
    parts = (Part("move", 3, "delta_xyz"), Part("grip", 1, "gripper_close_pm1"))
    stats = stats_of(rows())
    default = Normalizer(parts, stats)
    assert default.modes == {"move": "q01_q99", "grip": "none"}
    assert Normalizer(parts, stats, {"*": "min_max", "grip": "none"}).modes == {
        "move": "min_max",
        "grip": "none",
    }
    assert (default.offset[3], default.scale[3]) == (0.0, 1.0)
    with pytest.raises(UnknownNameError, match="Did you mean 'move'"):
        Normalizer(parts, stats, {"moov": "none"})
    with pytest.raises(UnknownNameError, match="Did you mean 'min_max'"):
        Normalizer(parts, stats, {"move": "minmax"})
    with pytest.raises(ConfigError, match=r"4 values.*have 3"):
        Normalizer(parts[:1], stats)


def test_normalizers_survive_the_disk(tmp_path: Path) -> None:
    action = Normalizer(BODY.action, stats_of(rows()), {"move": "mean_std"})
    state = Normalizer(BODY.state, VectorStats.identity(3))
    save_normalizers(tmp_path / "stats.json", {"action": action, "state": state})
    loaded = load_normalizers(tmp_path / "stats.json", BODY)
    assert loaded["action"].stats == action.stats and loaded["action"].modes == action.modes
    np.testing.assert_array_equal(loaded["action"].scale, action.scale)
    for text in ("{", "[]", '{"action": {"stats": {}}}', '{"wheels": {"stats": {}, "modes": {}}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match="not normalisation statistics"):
            load_normalizers(tmp_path / "bad.json", BODY)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_normalizers(tmp_path / "none.json", BODY)


@needs_golden
@pytest.mark.parametrize(
    ("mode", "theirs"), [("mean_std", "mean_std"), ("min_max", "min_max"), ("q01_q99", "q99")]
)
def test_normaliser_agrees_with_starvla(mode: str, theirs: str) -> None:
    """On what varies. Dimension 3 is constant in their statistics: there their inverse is off, ours is exact."""
    golden = np.load(GOLDEN / "normalizer" / "normalizer.npz")
    names = ("mean", "std", "min", "max", "q01", "q99")
    stats = VectorStats(16, *(tuple(map(float, golden[f"stat.{name}"])) for name in names))
    normalizer = Normalizer(tuple(Part(f"p{i}", 1, "other") for i in range(7)), stats, {"*": mode})
    out = normalizer.normalize(golden["x"])
    varying = [0, 1, 2, 4, 5, 6]
    np.testing.assert_allclose(out[:, varying], golden[f"{theirs}.forward"][:, varying], atol=1e-6)
    np.testing.assert_allclose(normalizer.unnormalize(out), golden["x"], atol=1e-6)

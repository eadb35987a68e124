"""Several datasets in one: each window as its own dataset has it, with masks where its body lacks something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare
from test_data_loading import LENGTHS, example, make_dataset

from vla_agents.data import Draws, Mixture, Pictures, WindowDataset, open_dataset
from vla_agents.data.loading.orders import row_weights
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError

JOINTS = Embodiment(
    "joints",
    action=(Part("joints", 4, "joint_position"), Part("grip", 1, "gripper_open_01", 0, 1)),
    state=(Part("joints", 4, "joint_position"),),
    cameras=(Camera("front", 32, 48), Camera("side", 32, 32)),
    control_hz=10.0,
)
BLIND = Embodiment("blind", action=(Part("grip", 1, "gripper_open_01", 0, 1),), control_hz=10.0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixture")
    for name, body in (("joints", JOINTS), ("blind", BLIND)):
        make_dataset(root / name, body, "hdf5", seed=len(name))
    return {"arm": example()[0].path, "joints": root / "joints", "blind": root / "blind"}


def windows(path: Path, **options: object) -> WindowDataset:
    return WindowDataset(open_dataset(path), 3, **({"pictures": Pictures("files")} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("history", [1, 2])
def test_every_window_is_that_of_its_dataset(paths: dict[str, Path], history: int) -> None:
    parts = {name: windows(path, history=history) for name, path in paths.items()}
    mixture = Mixture(parts, [1, 2, 1])
    assert len(mixture) == 3 * sum(LENGTHS) and mixture.sizes.tolist() == [18] * 3
    assert [p.name for p in mixture.embodiment.action] == ["position", "turn", "grip", "joints"]
    assert mixture.embodiment.camera_names == ("front", "wrist", "side")
    rows = np.random.default_rng(0).permutation(len(mixture))
    batch = mixture.get_batch(rows)
    assert np.array_equal(batch["dataset"], rows // 18) and np.array_equal(
        mixture.dataset_of[rows], rows // 18
    )
    lead = (history,) if history > 1 else ()
    for k, row in enumerate(rows):
        name = mixture.names[row // 18]
        part, way = parts[name], mixture.members[name]
        own = part.get_batch([row % 18])
        assert mixture.step_of[row] == part.step_of[row % 18]
        assert batch["instruction"][k] == own["instruction"][0]
        assert np.array_equal(batch["mask"][k], own["mask"][0])
        assert np.array_equal(way.inverse_action(batch["action"][k]), own["action"][0])
        assert np.array_equal(batch["action_mask"][k], way.mask("action"))
        assert not batch["action"][k][:, ~batch["action_mask"][k]].any()
        assert np.array_equal(batch["state"][k][..., way.mask("state")], own["state"][0])
        assert not batch["state"][k][..., ~batch["state_mask"][k]].any()
        for camera in mixture.embodiment.cameras:
            image, has = batch["images"][camera.name][k], camera.name in own["images"]
            assert image.shape == (*lead, camera.height, camera.width, 3)
            assert batch["image_mask"][camera.name][k] == has
            assert np.array_equal(image, own["images"][camera.name][0]) if has else not image.any()
        if history > 1:
            assert np.array_equal(batch["observed"][k], own["observed"][0])
    action, mask = mixture.chunks(rows)
    assert np.array_equal(action, batch["action"]) and np.array_equal(mask, batch["mask"])
    assert mixture.lengths.tolist() == [*LENGTHS] * 3
    assert {batch[n].dtype for n in ("mask", "action_mask", "state_mask")} == {np.dtype(bool)}


def test_a_batch_of_one_dataset_has_the_same_fields(paths: dict[str, Path]) -> None:
    mixture = Mixture({name: windows(path) for name, path in paths.items()})
    mixed = mixture.get_batch([0, 20, 40])
    for first in (0, 18, 36):
        only = mixture.get_batch([first, first + 1])
        assert set(only) == set(mixed) and set(only["images"]) == set(mixed["images"])
        for name in ("state", "action", "mask", "dataset", "state_mask", "action_mask"):
            assert only[name].shape[1:] == mixed[name].shape[1:] and only[name].dtype == mixed[name].dtype


def test_shares_of_samples_are_the_weights(paths: dict[str, Path]) -> None:
    mixture = Mixture({name: windows(path) for name, path in paths.items()}, [6, 3, 1])
    order = Draws(row_weights(mixture.sizes, mixture.shares), 40, seed=1)
    rows = np.concatenate([order.rows(step).ravel() for step in range(500)])
    counts = np.bincount(mixture.dataset_of[rows], minlength=3)
    assert chisquare(counts, np.array([0.6, 0.3, 0.1]) * 20_000).pvalue > 0.01
    assert np.allclose(Mixture({n: windows(p) for n, p in paths.items()}).shares, 1 / 3)


def test_each_keeps_its_statistics_and_pooled_ones_skip_what_is_missing(paths: dict[str, Path]) -> None:
    parts = {name: windows(path) for name, path in paths.items()}
    mixture = Mixture(parts)
    grips = [parts[n].action[:, w] for n, w in (("arm", 6), ("joints", 4), ("blind", 0))]
    pooled = mixture.statistics()["action"]
    assert np.isclose(pooled.mean[6], np.concatenate(grips).mean()) and np.isclose(
        pooled.max[6], np.max(grips)
    )
    assert np.allclose(pooled.std[7:], parts["joints"].action[:, :4].std(0))  # no zeros of the others
    assert np.allclose(pooled.q99[:6], np.quantile(parts["arm"].action[:, :6], 0.99, axis=0))
    own = mixture.statistics_of("joints")["action"]
    assert np.allclose(own.mean, parts["joints"].action.mean(0)) and own.count == 18
    assert "state" not in mixture.statistics_of("blind") and len(mixture.statistics()["state"].mean) == 7 + 4


def test_normalised_by_their_own_statistics(paths: dict[str, Path]) -> None:
    parts = {name: windows(paths[name]) for name in ("arm", "joints")}
    mixture = Mixture(parts, statistics="per_dataset", modes={"*": "mean_std"})
    batch = mixture.get_batch(np.arange(36))
    for number, (name, part) in enumerate(parts.items()):
        mine = batch["dataset"] == number
        values = batch["action"][mine][:, 0][:, mixture.members[name].mask("action")]
        assert np.allclose(values.mean(0), 0, atol=1e-5) and np.allclose(values.std(0), 1, atol=1e-4)
        back = mixture.members[name].inverse_action(batch["action"][mine])
        assert np.allclose(back, part.get_batch(np.arange(18))["action"], atol=1e-5)
    assert mixture.statistics()["action"].mean == (0.0,) * 11
    assert mixture.statistics()["action"].std == (1.0,) * 11


def test_split_keeps_shares_and_bodies(paths: dict[str, Path]) -> None:
    mixture = Mixture({name: windows(path) for name, path in paths.items()}, [6, 3, 1])
    training, held_out = mixture.split(0.25, seed=4)
    assert len(training) + len(held_out) == len(mixture) and len(held_out.sizes) == 3
    assert np.allclose(training.shares, [0.6, 0.3, 0.1]) and training.embodiment == mixture.embodiment
    names = [set(part.get_batch(np.arange(len(part)))["instruction"]) for part in (training, held_out)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 12


def test_relative_actions_and_rates_in_a_mixture(paths: dict[str, Path], tmp_path: Path) -> None:
    fast = replace(JOINTS, control_hz=20.0)
    make_dataset(tmp_path / "fast", fast, "hdf5", seed=9)
    with pytest.raises(ConfigError, match=r"'arm' is at 10 Hz, 'fast' at 20 Hz.*\n.*fps="):
        Mixture({"arm": windows(paths["arm"]), "fast": windows(tmp_path / "fast")})
    parts = {
        n: windows(p, fps=10.0, actions="relative")
        for n, p in (("arm", paths["arm"]), ("fast", tmp_path / "fast"))
    }
    mixture = Mixture(parts)
    assert mixture.embodiment.control_hz == 10
    kinds = [p.kind for p in mixture.embodiment.action]
    assert kinds == ["relative_xyz", "relative_axis_angle", "gripper_open_01", "relative_joint_position"]
    raw, way = parts["fast"].get_batch([2]), mixture.members["fast"]
    batch = mixture.get_batch([18 + 2])
    back = parts["fast"].transform.inverse_chunk(way.inverse_action(batch["action"]), raw["state"])
    steps = WindowDataset(open_dataset(tmp_path / "fast"), 3, fps=10.0).get_batch([2])["action"]
    np.testing.assert_allclose(back, steps, atol=1e-5)


def test_statistics_of_relative_chunks_are_over_all_their_steps() -> None:
    data = windows(example()[0].path, actions="relative")
    action, mask = data.chunks(np.arange(len(data)))
    found = data.statistics()["action"]
    assert found.count == mask.sum() and np.allclose(found.mean, action[mask].mean(0), atol=1e-6)
    assert np.allclose(found.q01, np.quantile(action[mask], 0.01, axis=0), atol=1e-6)
    plain = windows(example()[0].path)
    assert plain.statistics()["action"].count == 18


def test_refusals(paths: dict[str, Path]) -> None:
    arm = windows(paths["arm"])
    with pytest.raises(ConfigError, match="horizon is 3 in 'a' and 2 in 'b'"):
        Mixture({"a": arm, "b": WindowDataset(open_dataset(paths["joints"]), 2)})
    with pytest.raises(ConfigError, match="history is 1"):
        Mixture({"a": arm, "b": windows(paths["joints"], history=2)})
    with pytest.raises(ConfigError, match=r"camera 'front' is 32x48 .* 16x16"):
        Mixture({"a": arm, "b": windows(paths["joints"], pictures=Pictures("files", (16, 16)))})
    with pytest.raises(ConfigError, match="3 weights for 1 datasets"):
        Mixture({"a": arm}, [1, 2, 3])
    with pytest.raises(ConfigError, match="mixture of 0 datasets"):
        Mixture({})
    with pytest.raises(ConfigError, match="weights are"):
        Mixture({"a": arm}, [-1])

"""Loading ahead in other processes: the same batches whatever the workers, taken up again anywhere, typed errors."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from test_data_loading import example, make_dataset

from vla_agents.data import Draws, Epochs, Loader, Mixture, Pictures, WindowDataset
from vla_agents.data.loading.parcels import pack, unpack
from vla_agents.errors import ConfigError, DatasetError


@pytest.fixture(scope="module")
def data() -> WindowDataset:
    found = WindowDataset(example()[0], 3, history=2, pictures=Pictures("files"))
    found.get_batch([0, 7])  # decoders are open here when workers are forked
    return found


def tell(batch: dict[str, Any]) -> bytes:
    """All of a batch, as bytes."""
    arrays = [*batch["images"].values(), batch["state"], batch["action"], batch["mask"]]
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays) + repr(batch["instruction"]).encode()


def take(data: Any, steps: range, **options: Any) -> list[list[bytes]]:
    """The batches of some steps, in order."""
    order = Epochs([len(data)], 4, seed=5)
    with Loader(data, order, finish=tell, **options) as loader:
        return [loader.step(step) for step in steps]


@pytest.mark.parametrize(("workers", "start_method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(data: WindowDataset, workers: int, start_method: str) -> None:
    expected = take(data, range(12), count=2)
    assert take(data, range(12), count=2, workers=workers, start_method=start_method) == expected
    assert take(data, range(12), count=2) == expected  # and this process reads on undisturbed


def test_taken_up_again_anywhere(data: WindowDataset) -> None:
    whole = take(data, range(20))
    for workers in (0, 2):
        assert take(data, range(13, 20), workers=workers) == whole[13:]
    order = Epochs([len(data)], 4, seed=5)
    with Loader(data, order, finish=tell, workers=2) as loader:
        for step in (3, 4, 5, 11, 12, 0, 1, 1):  # jumps are allowed, only slower
            assert loader.step(step) == whole[step]


def test_new_samples_each_epoch_and_ranks_apart(data: WindowDataset) -> None:
    order = Epochs([len(data)], 3, seed=0)
    seen = []
    for rank in range(2):
        with Loader(data, order, rank=rank, world=2, workers=1, finish=rows_of) as loader:
            seen.append([row for step in range(3) for row in loader.step(step)[0]])
    first = [pair for pairs in zip(*seen, strict=True) for pair in pairs]
    assert sorted(first) == sorted(rows_of(data.get_batch(np.arange(18))))  # an epoch: all, each once
    with Loader(data, order, world=2, finish=rows_of) as loader:
        assert [row for step in range(3, 6) for row in loader.step(step)[0]] != seen[0]


def rows_of(batch: dict[str, Any]) -> list[tuple[float, ...]]:
    """What tells windows apart."""
    return [tuple(np.asarray(state).ravel().tolist()) for state in batch["action"]]


@dataclass(frozen=True)
class Frozen:
    tensor: torch.Tensor
    name: str


class Extended(dict[str, Any]):
    def __init__(self, items: dict[str, Any], beside: Any) -> None:
        super().__init__(items)
        self.beside = beside

    def __reduce__(self) -> tuple[Any, ...]:
        return Extended, (dict(self), self.beside)


def test_all_tensors_of_a_step_travel_in_one_block() -> None:
    tensors = [
        torch.tensor(7),
        torch.arange(12, dtype=torch.uint8).view(3, 4).T,
        torch.zeros(0, 3),
        torch.rand(2, 5)[:, ::2],
        torch.tensor([True, False, True]),
        torch.arange(6, dtype=torch.int64),
        torch.rand(3).bfloat16(),
    ]
    array = np.arange(3)
    found = [Frozen(tensors[0], "a"), (tensors[1], {"b": tensors[2], "c": array, "d": None})]
    found += [Extended({"e": tensors[3], "f": "text"}, [tensors[4], 1.5]), tensors[5], tensors[6]]
    packed, block = pack(found)
    assert block.dtype == torch.uint8 and "tensor(" not in repr(packed)
    first, (second, mapping), extended, *last = unpack(packed, block)
    back = [first.tensor, second, mapping["b"], extended["e"], extended.beside[0], *last]
    for ours, theirs in zip(back, tensors, strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        assert ours.untyped_storage().data_ptr() == block.data_ptr()
    assert first.name == "a" and mapping["c"] is array and mapping["d"] is None
    assert extended["f"] == "text" and extended.beside[1] == 1.5 and isinstance(extended, Extended)
    assert found[0].tensor is tensors[0]  # type: ignore[attr-defined] # what was packed is untouched
    assert unpack(*pack([array])) == [array]


def test_batches_as_tensors(data: WindowDataset) -> None:
    from vla_agents.policies.policy import Batch

    order = Draws(np.ones(len(data)), 4, seed=5)
    with Loader(data, order, workers=1, finish=Batch.from_numpy) as loader:
        for step, batches in zip(range(3), loader, strict=False):
            (batch,) = batches
            expected = data.get_batch(order.rows(step)[0])
            assert isinstance(batch, Batch) and batch.instructions == expected["instruction"]
            assert np.array_equal(batch.images["front"].numpy(), expected["images"]["front"])
            assert batch.action is not None and np.array_equal(batch.action.numpy(), expected["action"])


def test_a_mixture_with_workers(data: WindowDataset, tmp_path: Path) -> None:
    other = WindowDataset(
        make_dataset(tmp_path / "b", kind="hdf5", seed=3), 3, history=2, pictures=Pictures("files")
    )
    cached = Pictures("cache", folder=tmp_path / "cache")
    third = WindowDataset(make_dataset(tmp_path / "c", seed=4), 3, history=2, pictures=cached)
    mixture = Mixture({"a": data, "b": other, "c": third}, [1, 1, 2])
    order = Epochs(mixture.sizes.tolist(), 6, 0, mixture.shares.tolist())
    expected = [[tell(mixture.get_batch(rows)) for rows in order.rows(step)] for step in range(6)]
    with Loader(mixture, order, workers=2, start_method="fork", finish=tell) as loader:
        assert [loader.step(step) for step in range(6)] == expected


def test_errors_come_home_as_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "set"
    data = WindowDataset(make_dataset(path), 2, pictures=Pictures("files"))
    shutil.rmtree(path / "videos")
    with Loader(data, Draws(np.ones(18), 4), workers=2) as loader:
        with pytest.raises(DatasetError, match="the video is missing") as caught:
            loader.step(0)
        assert caught.value.path.suffix == ".mp4" and caught.value.remedy


def _die(batch: dict[str, Any]) -> None:
    os._exit(7)


def _fail(batch: dict[str, Any]) -> None:
    raise KeyError("a bug in the user's preprocessing")


def test_a_worker_that_dies_or_fails(data: WindowDataset) -> None:
    order = Draws(np.ones(len(data)), 4)
    with (
        Loader(data, order, workers=1, finish=_die) as loader,
        pytest.raises(ConfigError, match=r"died at step 0.*exit"),
    ):
        loader.step(0)
    with (
        Loader(data, order, workers=1, finish=_fail) as loader,
        pytest.raises(KeyError, match="a bug in the user's"),
    ):
        loader.step(0)
    for bad in ({"rank": 2, "world": 2}, {"count": 0}, {"workers": -1}, {"prefetch": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            Loader(data, order, **bad)  # type: ignore[arg-type]


def test_workers_end_with_the_loader(data: WindowDataset) -> None:
    this = psutil.Process()
    before = set(this.children(recursive=True))
    with Loader(data, Draws(np.ones(len(data)), 4), workers=2) as loader:
        loader.step(0)
        assert len(set(this.children(recursive=True)) - before) == 2
    for _ in range(100):
        left = [c for c in set(this.children(recursive=True)) - before if c.status() != psutil.STATUS_ZOMBIE]
        if not left:
            break
        time.sleep(0.05)
    assert not left


@pytest.mark.parametrize("source", ["files", "cache"])
def test_memory_is_flat_over_ten_epochs(source: Any, tmp_path: Path) -> None:
    """Of this process, which decodes itself: a file's buffers, a decoder's frames, numbers of a batch must not pile up."""
    reader = example()[0]
    data = WindowDataset(reader, 3, pictures=Pictures(source, (48, 48), folder=tmp_path))
    order, this = Epochs([len(data)], 6), psutil.Process()
    with Loader(data, order) as loader:
        used = []
        for step in range(3 * 30):  # 30 epochs of 3 steps: 20 to warm up, then 10
            loader.step(step)
            used.append(this.memory_info().rss)
    assert max(used[60:]) - max(used[30:60]) < 2_000_000

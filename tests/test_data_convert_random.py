"""Random episodes through random formats and back: whatever they hold comes back as it was."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_convert import LOSSLESS, assert_alike, place

from vla_agents.data import Step, create_dataset, open_dataset
from vla_agents.data.convert.convert import convert, losses
from vla_agents.data.convert.targets import TARGETS
from vla_agents.embodiment import Camera, Embodiment, Part

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
NAMES = st.sampled_from(["front", "wrist", "Cam 1", "käfer", "left.wrist-2"])
NUMBERS = [0.0, -0.0, 1.0, 1e-38, 3.4e38, -7.25]


@st.composite
def bodies(draw: st.DrawFn) -> Embodiment:
    """Any body: with or without cameras of any shape; the action in parts."""
    names = draw(st.lists(NAMES, unique=True, max_size=2))
    cameras = tuple(Camera(n, draw(st.integers(8, 24)), draw(st.integers(8, 24))) for n in names)
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    action = tuple(Part(f"a{k}", size, "unknown") for k, size in enumerate(sizes))
    state = draw(st.sampled_from([Part("s", 3, "xyz"), Part("s", 1, "unknown"), Part("s", 5, "unknown")]))
    return Embodiment("some body", action, (state,), cameras, float(draw(st.integers(1, 120))))


def steps(body: Embodiment, draw: st.DrawFn) -> list[Step]:
    length, given_other = draw(st.integers(1, 5)), draw(st.sampled_from(["", "executed", "commanded"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def vector(size: int) -> np.ndarray:
        values = rng.normal(size=size).astype(np.float32)
        values[rng.integers(size)] = NUMBERS[rng.integers(len(NUMBERS))]
        return values

    found = []
    for t in range(length):
        images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in body.cameras}
        other: dict[str, Any] = {given_other: vector(body.action_dim)} if given_other else {}
        found.append(
            Step(
                images,
                vector(body.state_dim),
                vector(body.action_dim),
                reward=float(np.float32(rng.normal())),
                terminated=bool(rng.integers(2)) and t == length - 1,
                truncated=bool(rng.integers(2)) and t == length - 1,
                intervened=bool(rng.integers(2)),
                time=float(rng.random() + t),
                camera_times={c.name: float(rng.random() + t) for c in body.cameras},
                **other,
            )
        )
    return found


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_there_and_back_again(data: st.DataObject) -> None:
    body, kinds = data.draw(bodies()), st.sampled_from(list(TARGETS))
    way = data.draw(st.lists(kinds, min_size=1, max_size=3, unique=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with create_dataset(path / "source", body, "hdf5", durable=False) as writer:
            for _ in range(data.draw(st.integers(1, 3))):
                writer.begin(data.draw(TEXT), {"note": data.draw(TEXT), "seed": data.draw(st.integers())})
                for step in steps(body, data.draw):
                    writer.add(step)
                writer.save(data.draw(st.sampled_from([True, False, None])))
        source = before = open_dataset(path / "source")
        for number, kind in enumerate(way):
            assert not [line for line in losses(before, kind, LOSSLESS) if not line.startswith("statistics")]
            there = place(path, f"step{number}", kind)
            convert(before, there, kind, LOSSLESS)
            before = open_dataset(there)
            assert_alike(before, source)
            for k in range(len(source)):
                metadata = before.read(k, images=False).metadata
                assert source.read(k, images=False).metadata.items() <= metadata.items()

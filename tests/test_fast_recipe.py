"""Why Qwen-FAST's recipe learns: its first word says x and y at once, so it is said where the VLM looks; and it listens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.config import load_config
from vla_agents.data import WindowDataset, open_dataset
from vla_agents.policies.checkpoint import load_policy
from vla_agents.policies.fast_tokenizer import FastTokenizer
from vla_agents.policies.policy import Batch
from vla_agents.train.config import TrainConfig
from vla_agents.train.run import action_chunks, fit_normalizers, train

RECIPE = Path(__file__).parent.parent / "examples" / "recipes" / "qwen_fast.yaml"
COLOURS = ("red", "green", "blue")


def demonstrations(folder: Path, episodes: int) -> Path:
    env = {"task": "lift", "difficulty": "medium", "image_size": 64, "cameras": ("front",)}
    settings = {"episodes": episodes, "noise": 0.3, "bursts": 0.4, "durable": False}
    collect(CollectConfig(out=folder, env_args=env, **settings), progress=False)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Normalised chunks (N, H, D) as the recipe has them, and which begin within the first four steps."""
    recipe = load_config(TrainConfig, RECIPE)
    folder = demonstrations(tmp_path_factory.mktemp("data") / "lift", 40)
    windows = WindowDataset(open_dataset(folder), recipe.model.horizon)
    normalizer = fit_normalizers(windows, recipe.normalization)["action"]
    return normalizer.normalize(action_chunks(windows).astype(np.float32)), windows.step_of < 4


def words(chunks: np.ndarray, scale: float, vocab: int) -> tuple[float, FastTokenizer, list[list[int]]]:
    """Mean words a chunk, the tokenizer, the words."""
    fast = FastTokenizer.fit(chunks, scale, vocab)
    said = fast.encode(chunks)
    return float(np.mean([len(row) for row in said])), fast, said


def test_the_first_word_of_the_recipe_says_x_and_y(chunks: tuple[np.ndarray, np.ndarray]) -> None:
    """They are decided where the picture is looked at; with a word for each number y is said further on."""
    normalized, early = chunks
    model = load_config(TrainConfig, RECIPE).model

    def share(fast: FastTokenizer, said: list[list[int]]) -> float:
        numbers = fast.token_numbers()
        return float(np.mean([len(numbers[row[0]]) >= 2 for row, at in zip(said, early, strict=True) if at]))

    count, fast, said = words(normalized, model.fast_scale, model.fast_vocab)
    single, plain, apart = words(normalized, 10, 60)
    assert count < 4 < 8 < single
    assert share(fast, said) > 0.7 > 0.2 > share(plain, apart)


def test_its_words_are_exact_enough(chunks: tuple[np.ndarray, np.ndarray]) -> None:
    """Rounding moves an orthonormal coefficient by half a unit at most, so a chunk's error is bounded, and small."""
    normalized, _ = chunks
    model = load_config(TrainConfig, RECIPE).model
    _, fast, said = words(normalized, model.fast_scale, model.fast_vocab)
    error = np.abs(fast.decode(said) - normalized)
    assert error.max() <= 0.5 / model.fast_scale * np.sqrt(model.horizon) + 1e-5
    assert error.mean() < 0.06


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_third_of_the_recipe_listens(tmp_path: Path) -> None:
    """Told another block, it sets out in another direction; the loss does not show whether it does (docs/fast.md)."""
    data = demonstrations(tmp_path / "lift", 600)
    recipe = load_config(TrainConfig, RECIPE)
    out = str(tmp_path / "run")
    train(
        replace(recipe, dataset=(str(data),), out=out, steps=recipe.steps // 3, tensorboard=False),
        progress=False,
    )
    policy = load_policy(tmp_path / "run" / "last", device="cpu")
    _, held_out = WindowDataset(open_dataset(data), recipe.model.horizon).split(0.05, recipe.seed)
    batch = Batch.from_numpy(held_out.get_batch(np.flatnonzero(held_out.step_of < 4)))
    normalize = policy.normalizers["action"].normalize

    def ways(batch: Batch) -> torch.Tensor:
        return torch.as_tensor(normalize(policy.predict_action(batch)))[:, 0, :2]

    other = dict(zip(COLOURS, (*COLOURS[1:], COLOURS[0]), strict=True))
    told = [" ".join(other.get(word, word) for word in text.split()) for text in batch.instructions]
    assert told != batch.instructions
    before, after = ways(batch), ways(replace(batch, instructions=told))
    assert float(((before - after).abs() > 0.3).any(1).float().mean()) > 0.6
    truth = torch.as_tensor(normalize(batch.action))[:, 0, :2]
    mean_error = (truth - truth.mean(0)).abs().mean()
    assert float((before - truth).abs().mean()) < 0.75 * float(mean_error)

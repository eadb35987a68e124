"""Denormal numbers are zeros inside `no_denormals`, and numbers again after it, whatever happens inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_agents.cpu import no_denormals

_SMALL = 2.0**-140  # a denormal float32


def _twice() -> tuple[float, float]:
    return float(torch.tensor(_SMALL) * 2), float(np.float32(_SMALL) * np.float32(2))


def test_denormals_are_away_only_inside() -> None:
    assert _twice() == (2 * _SMALL, 2 * _SMALL)
    with no_denormals():
        assert _twice() == (0.0, 0.0)
        with no_denormals():
            pass
        assert _twice() == (0.0, 0.0), "the inner one leaves the outer one's setting"
    with pytest.raises(KeyError), no_denormals():
        raise KeyError
    assert _twice() == (2 * _SMALL, 2 * _SMALL)

"""The core's loss and gradients held to torch's autograd on the same blocks; torch is imported when asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from random_blocks import Arrays, Case
from surrogate import has_one_gradient


def torch_loss(case: Case) -> tuple[float, Arrays]:
    """Return loss and gradients by autograd."""
    import torch
    import torch_block

    learnables = {k: torch.from_numpy(v).double().requires_grad_() for k, v in case.learnables.items()}
    loss = torch_block.loss(case, learnables)
    loss.backward()
    return float(loss.detach()), {k: np.asarray(v.grad) for k, v in learnables.items()}


def assert_gradients_agree(ours: Arrays, theirs: Arrays, loss: float, tolerance: float) -> None:
    """Compare by norms; a gradient that vanishes beside the whole counts against 1e-2 of it."""
    whole = np.sqrt(sum(float(np.sum(g**2)) for g in theirs.values())) + 1e-3 * loss
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        size = max(float(np.linalg.norm(gradient)), 1e-2 * whole)
        assert np.linalg.norm(ours[name] - gradient) <= tolerance * size, name


def count_agreeing(core: Any, cases: Iterable[Case], loss: float, gradients: float) -> int:
    """Hold loss and gradients to autograd, to these relative tolerances; return how many cases there were."""
    compared = 0
    for case in cases:
        compared += 1
        expected, theirs = torch_loss(case)
        found, ours = case.loss(core)[:2]
        assert found == pytest.approx(expected, rel=loss), case
        assert_gradients_agree(ours, theirs, expected, gradients)
    return compared


def comparable(double: Any, cases: Iterable[Case]) -> Iterator[Case]:
    """Yield those that learn something and have one gradient."""
    return (case for case in cases if case.learnables and has_one_gradient(double, case))

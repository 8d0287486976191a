"""The differentiable twin of a quantized block's or layer's loss: every rounding and clip decision frozen."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytest
from random_blocks import Array, Arrays

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
TOLERANCE = 1e-6
STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))
KINK = 1e-6  # relative jump of the slope; one-sided differences are good to 1e-9


class Case(Protocol):
    """What can be differenced: a loss with its gradients, at learnables of its own or others."""

    learnables: Arrays

    def loss(self, core: Any, learnables: Arrays | None = None) -> tuple[float, Arrays]:
        """Return the loss and the gradient of every learnable."""


class Surrogate:
    """The loss with all decisions frozen at the case's learnables."""

    def __init__(self, core: Any, case: Case) -> None:
        self.core, self.case = core, case
        core._tape(1)
        self.base_loss, self.gradients = case.loss(core)

    def at(self, name: str, moved: Array) -> float:
        """Return the loss with one learnable moved."""
        self.core._tape(2)
        return self.case.loss(self.core, {**self.case.learnables, name: moved})[0]

    def slope(self, name: str, direction: Array, step: float) -> float:
        """Return the directional derivative along one learnable."""
        base = self.case.learnables[name].astype(np.float64)
        return sum(weight * self.at(name, base + k * step * direction) for k, weight in STENCIL) / step

    def one_sided(self, name: str, direction: Array, step: float) -> float:
        """Return the slope to one side, to second order."""
        base = self.case.learnables[name].astype(np.float64)
        near, far = (self.at(name, base + k * step * direction) for k in (1, 2))
        return (4 * near - far - 3 * self.base_loss) / (2 * step)

    def is_smooth(self) -> bool:
        """Return whether no learnable has a kink at the base point along one random direction."""
        rng = np.random.default_rng(0)
        for name, gradient in self.gradients.items():
            direction = rng.uniform(-1, 1, gradient.shape)
            jump = self.one_sided(name, direction, 1e-5) + self.one_sided(name, -direction, 1e-5)
            if abs(jump) > KINK * max(float(np.linalg.norm(gradient)), 1e-3 * self.base_loss):
                return False
        return True


def has_one_gradient(double: Any, case: Case) -> bool:
    """Return whether no tie at the base point leaves the gradient to rounding."""
    smooth = Surrogate(double, case).is_smooth()
    double._tape(0)
    return smooth


def check_direction(surrogate: Surrogate, name: str, direction: Array) -> bool:
    """Compare g . v with the differences, relative to the size of the products; return False at a kink."""
    products = surrogate.gradients[name] * direction
    slope = float(products.sum())
    # Differences of a loss carry its rounding: 1e-16 / step of it, so far smaller slopes say nothing.
    scale = max(float(np.linalg.norm(products)), 1e-4 * surrogate.base_loss)
    errors = []
    for step in STEPS:
        errors.append(abs(surrogate.slope(name, direction, step) - slope) / scale)
        if errors[-1] <= TOLERANCE:
            return True
    if not surrogate.is_smooth():
        return False
    pytest.fail(f"{name}: relative errors {errors} at steps {STEPS}; {surrogate.case}")


def check_gradients(core: Any, case: Case, rng: np.random.Generator) -> bool:
    """Check every learnable along a random direction and one coordinate; return whether all were sharp."""
    plain_loss, plain = case.loss(core)
    surrogate = Surrogate(core, case)
    assert surrogate.base_loss == pytest.approx(plain_loss, rel=1e-12)
    assert set(surrogate.gradients) == set(case.learnables) == set(plain)
    sharp = True
    for name, value in case.learnables.items():
        assert surrogate.gradients[name].shape == value.shape
        coordinate = np.zeros(value.shape)
        coordinate.flat[rng.integers(value.size)] = 1
        for direction in (rng.uniform(-1, 1, value.shape), coordinate):
            sharp &= check_direction(surrogate, name, direction)
    core._tape(0)
    return sharp

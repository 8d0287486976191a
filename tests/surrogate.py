"""The differentiable twin of a quantized block's loss: every rounding offset and clip decision frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
from random_blocks import Array, Case

STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))
KINK = 1e-6  # relative jump of the slope; one-sided differences are good to 1e-9


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

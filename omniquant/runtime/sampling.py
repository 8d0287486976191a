"""Choosing the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from omniquant.errors import ConfigError, NotFiniteError
from omniquant.forward import F32


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose.

    Parameters
    ----------
    temperature : float
        0: always the likeliest token (of equals the first). Else logits are divided by it.
    top_k : int
        Only the k likeliest tokens; 0: all.
    top_p : float
        Only the fewest likeliest tokens whose probabilities reach p together (Holtzman et al. 2020); 1: all.
    seed : int
        Same seed, same text.

    Raises
    ------
    ConfigError
        If a number makes no sense.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, expected above 0 and at most 1")
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name} is {value!r}, expected a whole number from 0")


class Sampler:
    """Chooses one token after the other; the draws depend on seed and logits alone."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def __call__(self, logits: F32) -> int:
        """Return a token id from logits [V]; NotFiniteError where one is NaN or infinite."""
        best = int(np.argmax(logits))
        # The largest is NaN where any is.
        if not math.isfinite(logits[best]):
            raise NotFiniteError(f"the model computed a logit of {logits[best]} for token {best}")
        if self._options.temperature == 0:
            return best
        tokens, weights = self._candidates(logits)
        totals = np.cumsum(weights)
        at = np.searchsorted(totals, self._random.random() * totals[-1], side="right")
        return int(tokens[min(int(at), len(tokens) - 1)])

    def _candidates(self, logits: F32) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that may come next, and weights in proportion to their probabilities."""
        options = self._options
        scaled = logits.astype(np.float64) / options.temperature
        weights = np.exp(scaled - scaled.max())
        tokens = np.arange(len(logits))
        if 0 < options.top_k < len(logits):
            least = np.partition(weights, -options.top_k)[-options.top_k]
            tokens = np.flatnonzero(weights >= least)
            # Of equals the first: stable.
            tokens = tokens[np.argsort(-weights[tokens], kind="stable")][: options.top_k]
            weights = weights[tokens]
        if options.top_p < 1:
            # Tokens below (1 - p) / n of the whole weigh less than 1 - p together: none can belong.
            likely = np.flatnonzero(weights >= weights.sum() * (1 - options.top_p) / len(weights))
            order = likely[np.argsort(-weights[likely], kind="stable")]
            totals = np.cumsum(weights[order])
            count = int(np.searchsorted(totals, options.top_p * weights.sum())) + 1
            tokens, weights = tokens[order[:count]], weights[order[:count]]
        return tokens, weights

"""What ``method="auto"`` takes for a scheme: the recipe that measured best, by benchmarks/RESULTS.md."""

from __future__ import annotations

import math
from typing import Any

from omniquant.config.scheme import QuantConfig

AUTO = "auto"

# Offsets in round(), clipping and scales trained together, from the best of AWQ's grid: SignRound's work with
# LET beside it. A step for every window, at low rates: at twice to six times these, on pairs of windows,
# offsets follow what is noise in their gradients, and after 48 windows other text diverges a quarter more.
_LEARNED_ROUNDING: dict[str, Any] = {
    "rounding": "learned",
    "start": "search",
    "schedule": "cosine",
    "batch_size": 1,
    "lr_lwc": 0.01,
    "lr_let": 0.005,
    "aug_loss": False,
}
# The rate of offsets is spread over all steps. Noise moves n steps of rate / n by rate / sqrt(n): more steps
# bear, and want, a higher one. Here the least, and the steps that want it. On SmolLM2 1.5 after 256 steps
# leaves a divergence of 0.192, 1 one of 0.207. At four codes a weight offsets that go farther do better.
_OFFSETS = {"weights": (1.0, 96), "2 bits": (3.0, 384)}
# Where activations are rounded too, the offsets go further: at W4A4 more of the loss is theirs to win.
_ROUNDED_TOO: dict[str, Any] = {"rounding": "learned", "schedule": "cosine", "lr_rounding": 5.0}
_FOLDED: dict[str, Any] = _ROUNDED_TOO | {"lr_lwc": 0.05, "lr_let": 0.03}
# Certified Kronecker maps of every input behind Hadamard rotations, clipped activations: all at run time.
_ONLINE_MAPS: dict[str, Any] = _ROUNDED_TOO | {
    "rotation": "online",
    "input_map": "kronecker",
    "lac": True,
    "loss": "relative",
}
# The most epochs, and after how many windows in all no further one is begun: other windows teach more than
# the same ones again (two epochs of 128 windows leave stories260K nearer to full precision than six of 64).
_BUDGETS = {"weights": (3, 192), "2 bits": (12, 768), "activations": (6, 384)}


def recipe_for(
    scheme: QuantConfig,
    target: str,
    online: bool = True,
    search: bool = True,
    samples: int | None = None,
    epochs: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """Return the method for a scheme and the options in which it departs from that method's defaults.

    Only 4-bit activations that no other engine's format is meant to hold get transforms that cost time when
    the model runs; ``omniquant info`` tells how much.

    Parameters
    ----------
    scheme : QuantConfig
    target : str
        As ``CalibrationOptions.target``.
    online : bool
        Whether the model's blocks permit rotations and maps at run time.
    search : bool
        Whether scales and clipping can be searched on Gram matrices, as they cannot where there are experts.
    samples : int, optional
        Windows of the calibration: the more there are, the fewer epochs. None: few.
    epochs : int, optional
        Wished for instead of the recipe's.
    """
    if not scheme.quantizes_weights:
        return "rtn", {}
    if scheme.weight_only:
        start = {} if search else {"start": "paper"}
        kind = "2 bits" if scheme.w_bits == 2 else "weights"
        trained = _epochs(kind, samples)
        rate = _offsets_rate(kind, (epochs or trained) * (samples or 0))
        return "omniquant", _LEARNED_ROUNDING | start | {"epochs": trained, "lr_rounding": rate}
    method, options = "omniquant", _FOLDED
    if scheme.a_bits <= 4 and target == "any" and online:
        method, options = "affinequant", _ONLINE_MAPS
    return method, options | {"epochs": _epochs("activations", samples)}


def _epochs(budget: str, samples: int | None) -> int:
    most, windows = _BUDGETS[budget]
    return most if samples is None else max(1, min(most, -(-windows // samples)))


def _offsets_rate(kind: str, steps: int) -> float:
    least, enough = _OFFSETS[kind]
    return round(least * math.sqrt(max(1.0, steps / enough)), 2)

"""What ``method="auto"`` takes for a scheme: the recipe that measured best; README has the table."""

from __future__ import annotations

from typing import Any

from omniquant.config.scheme import QuantConfig

AUTO = "auto"

# Offsets in round(), clipping and scales trained together, from the best of AWQ's grid: SignRound's work with
# LET beside it. Half a dozen window passes do what AutoRound's 50 iterations of 8 do.
_LEARNED_ROUNDING: dict[str, Any] = {
    "rounding": "learned",
    "start": "search",
    "schedule": "cosine",
    "batch_size": 2,
    "lr_lwc": 0.05,
    "lr_let": 0.03,
    "lr_rounding": 2.0,
    "aug_loss": False,
}
# Where activations are rounded too, the offsets go further: at W4A4 more of the loss is theirs to win.
_ROUNDED_TOO: dict[str, Any] = {"rounding": "learned", "schedule": "cosine", "lr_rounding": 5.0, "epochs": 6}
_FOLDED: dict[str, Any] = _ROUNDED_TOO | {"lr_lwc": 0.05, "lr_let": 0.03}
# Certified Kronecker maps of every input behind Hadamard rotations, clipped activations: all at run time.
_ONLINE_MAPS: dict[str, Any] = _ROUNDED_TOO | {
    "rotation": "online",
    "input_map": "kronecker",
    "lac": True,
    "loss": "relative",
}


def recipe_for(
    scheme: QuantConfig, target: str, online: bool = True, search: bool = True
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
    """
    if not scheme.quantizes_weights:
        return "rtn", {}
    if scheme.weight_only:
        start = {} if search else {"start": "paper"}
        return "omniquant", _LEARNED_ROUNDING | start | {"epochs": 12 if scheme.w_bits == 2 else 3}
    if scheme.a_bits <= 4 and target == "any" and online:
        return "affinequant", _ONLINE_MAPS
    return "omniquant", _FOLDED

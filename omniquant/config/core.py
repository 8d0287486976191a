"""Scheme and options as the core takes them: the dict of ``_core.calibrate_block``."""

from __future__ import annotations

from typing import Any

from omniquant.config.method import CalibrationOptions
from omniquant.config.scheme import QuantConfig
from omniquant.config.target import scale_bits


def core_qk_map(options: CalibrationOptions, rope: bool, head_norms: bool = False) -> str:
    """Name the q-k map as the core does: "none", "tied", "rotation", "scale" or "full".

    "exact" is what commutes with the rotations of RoPE: one scale a frequency pair for LET, a 2 x 2 block
    [[a, -b], [b, a]] a pair for AffineQuant. Without RoPE every map is exact, so the freest one is taken.
    Norms of the heads of q and k stand in the way of every map: there is none then.
    """
    if head_norms:
        return "none"
    if options.qk_map != "exact":
        return options.qk_map
    if options.method == "affinequant":
        return "rotation" if rope else "full"
    return "tied" if rope else "scale"


def core_options(
    scheme: QuantConfig,
    options: CalibrationOptions,
    *,
    block: int,
    rope: bool,
    gated: bool = True,
    head_norms: bool = False,
    experts: bool = False,
) -> dict[str, Any]:
    """Return the option dict of ``_core.calibrate_block`` and ``_core.fold_block``.

    Parameters
    ----------
    scheme : QuantConfig
    options : CalibrationOptions
    block : int
        Index of the block: used in messages and for the sample order.
    rope : bool
        Whether the model rotates Q and K.
    gated : bool
        Whether the MLP is gated: only then is it linear between `up` and `down`, so that scales fold there.
    head_norms : bool
        Whether norms stand between the linears of Q and K and their product.
    experts : bool
        Whether the MLP is a mixture of experts: `up` and `down` of several share no scales.

    Returns
    -------
    dict
        Every key the core asks for.
    """
    return {
        "block": block,
        "seed": options.seed,
        "w_bits": scheme.w_bits,
        "group_size": scheme.group_size or 0,
        "w_symmetric": scheme.w_symmetric,
        "scale_bits": scale_bits(options.target, scheme.w_symmetric),
        "linears": {
            name: linear.to_core(scale_bits(options.target, linear.symmetric))
            for name, linear in scheme.block(block).items()
            if linear != scheme.uniform()
        },
        "activation": scheme.activation(block),
        "lwc": options.lwc,
        "lac": options.lac,
        "start": options.start,
        "rounding": options.rounding,
        "norm_map": options.norm_map,
        "vo_map": options.vo_map,
        "qk_map": core_qk_map(options, rope, head_norms),
        "input_map": options.input_map,
        "up_down": options.up_down and gated and not experts,
        "shift": options.shift,
        "parametrization": options.parametrization,
        "dominance": options.dominance,
        "margin": options.margin,
        "stability": options.stability,
        "alpha": options.alpha,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "patience": options.patience,
        "lr_lwc": options.lr_lwc,
        "lr_let": options.lr_let,
        "lr_rounding": options.lr_rounding,
        "damping": options.damping,
        "act_order": options.act_order,
        "true_sequential": options.true_sequential,
        "schedule": options.schedule,
        "shuffle": options.shuffle,
        "loss": options.loss,
        "sinks": options.sinks,
        "products": "float32" if options.products == "auto" else options.products,
        "gradients": "int8" if options.gradients == "int8" else "float",
        "best_iterate": options.best_iterate,
    }

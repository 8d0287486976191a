"""The quantizer, the transforms and the dominance check on NumPy arrays, for people with a loop of their own.

Everywhere: arrays of any layout and real dtype are taken (converted to float32 where NumPy's "same_kind"
allows it), inputs are never modified, results are new arrays. TypeError names an argument whose dtype cannot
be converted, ValueError one whose shape does not fit, :class:`~omniquant.errors.NotFiniteError` the
row and column of a NaN or infinity. ``threads=0`` means all; their number never changes a result.

Rows run along the last axis. A *group* is `group_size` consecutive values of a row that share a scale and a
zero point (0: the whole row); G = ceil(K / group_size), the last group may be shorter.
"""

from omniquant.functional.dominance import (
    dominance_margins,
    project_dominant,
    varah_bound,
)
from omniquant.functional.quantizer import (
    dequantize,
    fake_quantize,
    fake_quantize_backward,
    lwc_backward,
    lwc_forward,
    pack,
    quantize,
    unpack,
)
from omniquant.functional.transforms import (
    affine_backward,
    affine_forward,
    gradual_mask,
    let_backward,
    let_forward,
)

__all__ = [
    "affine_backward",
    "affine_forward",
    "dequantize",
    "dominance_margins",
    "fake_quantize",
    "fake_quantize_backward",
    "gradual_mask",
    "let_backward",
    "let_forward",
    "lwc_backward",
    "lwc_forward",
    "pack",
    "project_dominant",
    "quantize",
    "unpack",
    "varah_bound",
]

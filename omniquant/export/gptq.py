"""GPTQ: codes and zero points as bit streams in int32 words, scales in float16.

    qweight  int32 [K bits / 32, N]   a column is a dense little-endian bit stream along K
    qzeros   int32 [G, N bits / 32]   packed along N
    scales   float16 [G, N]
    g_idx    int32 [K]                the group of each input

`gptq_v2` stores zero points as they are. The first version stores z - 1, so that z = 0 wraps around; readers
add one without wrapping back, and such a model is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.errors import UnsupportedError
from omniquant.export.bits import bit_stream, half_scales
from omniquant.export.card import model_card
from omniquant.export.content import Content, Linear
from omniquant.export.folder import Tensors
from omniquant.export.huggingface import write_common, write_tensors

_LOAD = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".")  # with gptqmodel or auto-round installed
```"""


def write(content: Content, folder: Path) -> None:
    """Write the folder."""
    write_common(content, folder, quantization_config(content))

    def tensors_of(linear: Linear, index: int) -> Tensors:
        where = f"gptq cannot hold block {index} {linear.name}"
        return packed(linear, first_version=content.variant == "v1", where=where)

    write_tensors(content, folder, tensors_of)
    card = model_card(content, f"GPTQ ({content.variant})", "transformers", _LOAD, "gptq")
    atomic_write_bytes(folder / "README.md", card.encode())


def quantization_config(content: Content) -> dict[str, Any]:
    """Return config.json's quantization_config."""
    scheme = content.scheme
    return {
        "quant_method": "gptq",
        "bits": scheme.w_bits,
        "group_size": -1 if scheme.group_size is None else scheme.group_size,
        "sym": scheme.w_symmetric,
        "desc_act": False,
        "lm_head": False,
        "true_sequential": True,
        "checkpoint_format": "gptq" if content.variant == "v1" else "gptq_v2",
    }


def packed(linear: Linear, *, first_version: bool, where: str) -> Tensors:
    """Return the tensors of one linear.

    Raises
    ------
    UnsupportedError
        If a zero point of 0 has no place (first version), or a scale is too large for float16.
    """
    zero = np.ascontiguousarray(linear.zero_point.T)  # [G, N]
    if first_version:
        if not zero.all():
            raise UnsupportedError(
                f"{where}: a zero point is 0 and the first version stores z - 1; "
                "nearest: without --variant v1, or symmetric weights"
            )
        zero = zero - np.uint8(1)
    inputs = linear.codes.shape[1]
    return {
        "qweight": np.ascontiguousarray(bit_stream(linear.codes, linear.bits).T),
        "qzeros": bit_stream(zero, linear.bits),
        "scales": np.ascontiguousarray(half_scales(linear, where, "gptq").T),
        "g_idx": (np.arange(inputs) // linear.group).astype(np.int32),
    }

"""AWQ in the GEMM layout: 4-bit codes, eight to an int32 word across the outputs, in an order of its own.

qweight  int32 [K, N / 8]   nibble i of word j is output 8 j + (0, 2, 4, 6, 1, 3, 5, 7)[i]
qzeros   int32 [G, N / 8]   likewise
scales   float16 [G, N]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.export.bits import bit_stream, half_scales
from omniquant.export.card import model_card
from omniquant.export.content import U8, Content, Linear
from omniquant.export.folder import Tensors
from omniquant.export.huggingface import write_common, write_tensors

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

_LOAD = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".")  # with a kernel for AWQ, as vLLM has
```"""


def write(content: Content, folder: Path) -> None:
    """Write the folder."""
    write_common(content, folder, quantization_config(content))
    write_tensors(
        content, folder, lambda linear, index: packed(linear, f"awq cannot hold block {index} {linear.name}")
    )
    card = model_card(content, "AWQ (GEMM layout)", "transformers", _LOAD, "awq")
    atomic_write_bytes(folder / "README.md", card.encode())


def quantization_config(content: Content) -> dict[str, Any]:
    """Return config.json's quantization_config."""
    scheme = content.scheme
    return {
        "quant_method": "awq",
        "bits": scheme.w_bits,
        "group_size": -1 if scheme.group_size is None else scheme.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }


def packed(linear: Linear, where: str) -> Tensors:
    """Return the tensors of one linear; UnsupportedError if a scale is too large for float16."""
    return {
        "qweight": interleaved(linear.codes),
        "qzeros": interleaved(linear.zero_point),
        "scales": np.ascontiguousarray(half_scales(linear, where, "awq").T),
    }


def interleaved(values: U8) -> npt.NDArray[np.int32]:
    """Return values [N, columns] of 4 bits as words: int32 [columns, N / 8]."""
    rows, columns = values.shape
    ordered = values.T.reshape(columns, rows // len(ORDER), len(ORDER))[..., ORDER]
    return bit_stream(np.ascontiguousarray(ordered.reshape(columns, rows)), 4)

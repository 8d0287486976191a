"""Export formats as targets of a calibration: how each one stores the scales of weights.

GGUF's Q4_1 stores a group as ``h q + m`` with h and m in float16. With h of 7 significant bits m = -z h is a
float16 for every zero point z of 4 bits, so ``h q + m`` is ``(q - z) h`` to the bit. The other formats with
scales in float16 keep z as an integer, and 11 bits are theirs.
"""

from __future__ import annotations

TARGETS = ("any", "compressed-tensors", "gptq", "awq", "gguf", "onnx", "openvino", "huggingface")

FLOAT16_BITS = 11  # significant ones
_ZERO_POINT_BITS = 4


def scale_bits(target: str, symmetric: bool) -> int:
    """Return the significant bits a weight's scale may have, 0 for all of float32's.

    Parameters
    ----------
    target : str
        One of ``TARGETS``.
    symmetric : bool
        Whether the weights have no zero points.

    Returns
    -------
    int
    """
    if target == "gguf":
        return FLOAT16_BITS if symmetric else FLOAT16_BITS - _ZERO_POINT_BITS
    return FLOAT16_BITS if target in ("gptq", "awq") else 0

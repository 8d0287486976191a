"""What this machine multiplies with: products of `_core.matmul`, and kinds of products of a training step."""

from omniquant import _core

INFO = _core.runtime_info()
WAYS = ["best", "reference"] + ["avx2"] * ("avx2" in INFO["cpu"].split())
KINDS = ("float32", "integer", "bfloat16")
AVAILABLE = KINDS[: KINDS.index(INFO["products"]) + 1]

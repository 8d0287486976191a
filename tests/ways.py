"""What this machine multiplies with: products of `_core.matmul`, and kinds of products of a training step."""

import pytest

from omniquant import _core

INFO = _core.runtime_info()
KINDS = ("float32", "integer", "bfloat16")
AVAILABLE = KINDS[: KINDS.index(INFO["products"]) + 1]
WAYS = ["best", "reference"] + ["avx2"] * ("avx2" in INFO["cpu"].split())
WAYS += ["bfloat16"] * ("bfloat16" in AVAILABLE)

needs_integer = pytest.mark.skipif("integer" not in AVAILABLE, reason="no exact byte products here")
needs_bfloat16 = pytest.mark.skipif("bfloat16" not in AVAILABLE, reason="no fast bfloat16 products here")

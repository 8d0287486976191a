"""The products `_core.matmul` has here, by name."""

from omniquant import _core

WAYS = ["best", "reference"] + ["avx2"] * ("avx2" in _core.runtime_info()["cpu"].split())

"""The C core. ``_core_double``, built for tests only, has the same functions in double precision."""

from typing import Any

import numpy as np
import numpy.typing as npt

# Wherever an array is taken: any layout; other dtypes are converted where NumPy's "same_kind" allows it
# (TypeError naming the argument otherwise). Inputs are never modified. Results are new C-contiguous arrays.

# --- runtime (csrc/python/py_runtime.c) ---

def load_onednn(path: str) -> None:
    """Load libdnnl from a path; errors.BackendError says why it cannot be used. Once, at import."""

def runtime_info() -> dict[str, Any]:
    """Keys: onednn (version or None), cpu, openmp, threads (the default), real ("float32" or "float64")."""

def matmul(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    threads: int = 1,
    reference: bool = False,
) -> npt.NDArray[np.float32]:
    """op(a) [m, k] @ op(b) [k, n]; the same bits at any number of threads (0: all)."""

def inverse(a: npt.ArrayLike, pivot: bool = False, threads: int = 1) -> npt.NDArray[np.float64]:
    """Inverse of a [n, n]; without pivoting for strictly diagonally dominant a. errors.SingularError."""

def _fail_allocation(n: int, persistent: bool) -> int:
    """Test hook: the n-th allocation from now fails (and all later ones); 0: off. Returns those since."""

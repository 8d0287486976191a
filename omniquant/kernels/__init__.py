"""Linear layers computed with packed integers, on NumPy arrays.

Results are the same bits for every kernel and any number of threads. :func:`available` names the kernels
that run on this processor; the environment variable ``OMNIQUANT_KERNEL`` chooses one for the whole process.
"""

from omniquant.kernels.linear import Linear, available

__all__ = ["Linear", "available"]

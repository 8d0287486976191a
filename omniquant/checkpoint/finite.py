"""Finding the first NaN or infinity of a weight."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniquant.errors import NotFiniteError


def check_finite(name: str, array: npt.NDArray[np.floating], *, first_row: int = 0) -> None:
    """Check that every value of a tensor is finite.

    Readers do not call it: it would touch every page of a memory-mapped checkpoint.

    Parameters
    ----------
    name
        The tensor's name, for the message.
    array
        Any shape, any float type.
    first_row
        Which row of the tensor the array begins with, for the message.

    Raises
    ------
    NotFiniteError
        Naming the tensor and the row and column of the first NaN or infinity in row-major order; leading
        axes are counted as rows.
    """
    finite = np.isfinite(array)
    if finite.all():
        return
    first = int(np.argmin(finite.ravel()))
    row, column = divmod(first, array.shape[-1] if array.ndim else 1)
    if array.ndim == 1:
        raise NotFiniteError(f"{name}: element {column} is {array.ravel()[first]}")
    raise NotFiniteError(f"{name}: row {first_row + row} column {column} is {array.ravel()[first]}")

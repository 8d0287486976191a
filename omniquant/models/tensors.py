"""Our tensors inside a checkpoint: whole ones, parts of fused ones, transposed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.source import F32

Array = npt.NDArray[Any]
View = Callable[[Array], Array]


@dataclass(frozen=True)
class TensorRef:
    """One of our tensors inside a checkpoint.

    Parameters
    ----------
    key
        Its name there.
    shape
        The shape of what is stored there.
    view
        From what is stored to the view of it that is ours, up to a reshape: a slice, an axis moved, rows in
        another order. As a view it serves both ways. None: all of it, as it is.
    ours
        Our shape; None: the stored one.
    offset
        Ours is what is stored plus this: Gemma stores gains less 1.
    transposed
        The matrix is stored [in, out]; the view brings it into our order.
    """

    key: str
    shape: tuple[int, ...]
    view: View | None = None
    ours: tuple[int, ...] | None = None
    offset: float = 0.0
    transposed: bool = False

    def read(self, stored: F32) -> F32:
        """Return our tensor of what is stored."""
        values = stored if self.view is None else np.ascontiguousarray(self.view(stored))
        values = values.reshape(self.ours or self.shape)
        return values + np.float32(self.offset) if self.offset else values

    def write(self, values: Array, stored: Array) -> None:
        """Put our tensor, or one with the same rows, where it belongs in what is stored."""
        part = stored if self.view is None else self.view(stored)
        part[...] = (values - values.dtype.type(self.offset) if self.offset else values).reshape(part.shape)


def stored_tensors(refs: Mapping[str, TensorRef], tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return tensors as a checkpoint stores them, by its names: several of ours may make one.

    Parameters
    ----------
    refs : mapping of str to TensorRef
    tensors : mapping of str to ndarray
        By our names. What no tensor of ours fills is zero.
    """
    stored: dict[str, Array] = {}
    for name, values in tensors.items():
        ref = refs[name]
        if ref.key not in stored:
            stored[ref.key] = np.zeros(ref.shape, values.dtype)
        ref.write(values.astype(stored[ref.key].dtype, copy=False), stored[ref.key])
    return stored


def fused_rows(refs: Sequence[TensorRef], parts: Sequence[Array]) -> Array:
    """Return what lies along the rows [N_i, G] of tensors of ours along those [N, G] of the one they make.

    Rows come in the stored order; where the matrix is stored transposed, its columns are meant.
    """
    first, columns, dtype = refs[0], parts[0].shape[1], parts[0].dtype
    if first.view is None:
        return parts[0]
    if first.transposed:
        whole = np.zeros((columns, first.shape[1]), dtype)
    else:
        whole = np.zeros((first.shape[0], columns), dtype)
    for ref, part in zip(refs, parts, strict=True):
        ref.write(part, whole)
    return np.ascontiguousarray(whole.T) if first.transposed else whole


def grouped(refs: Mapping[str, TensorRef], names: Iterable[str]) -> dict[str, list[str]]:
    """Return our names by the stored tensor they are part of, both in order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(refs[name].key, []).append(name)
    return groups

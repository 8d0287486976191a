"""One calibrated block as tensors: packed codes, scales, zero points, norms, online maps, learnables.

Names in a file: "q.codes" uint8 [out, ceil(in * bits / 8)] (a dense little-endian bit stream a row),
"q.scale" f32 [out, G], "q.zero_point" uint8 [out, G] and, where the model has one, "q.bias" f32 [out];
the same for k, v, o, gate, up and down (of experts stacked by rows, with "router.weight" f32 [E, H], and
where all tokens share an MLP, shared_gate, shared_up, shared_down and "shared_router.weight");
"q.weight" f32 instead where weights stay float; "norm1.weight",
"norm2.weight" (of some families also post1, post2, q_norm and k_norm) and their biases; "norm1.inverse",
"norm2.inverse" f32 [H, H] for online maps; of each input
"norm1", "o", "norm2", "down" of linears "o.left" f32 [a, a] and "o.right" f32 [b, b], the inverses of its
Kronecker map, and "o.clip" f32 [2], the logits of its clipping;
"learnable.*": what was learned, for inspection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from omniquant import _core
from omniquant.checkpoint.text import one_line
from omniquant.config.scheme import BlockScheme
from omniquant.errors import CheckpointError
from omniquant.forward import F32, Weights
from omniquant.models.spec import BlockSpec
from omniquant.reprs import one_line_repr

Array = npt.NDArray[Any]

_LEARNABLE = "learnable."


@dataclass(frozen=True, repr=False)
class BlockState:
    """A calibrated block: the folded tensors as ``_core.fold_block`` returns them, and what was learned."""

    folded: dict[str, Array]
    learnables: dict[str, Array]

    @one_line_repr
    def __repr__(self) -> str:
        coded = ", ".join(name.removesuffix(".codes") for name in self.folded if name.endswith(".codes"))
        codes = f"codes of {coded}" if coded else "no codes"
        return f"{codes}; {len(self.folded)} tensors, {len(self.learnables)} learnables"


def linear_shapes(spec: BlockSpec) -> dict[str, tuple[int, int]]:
    """Return (out, in) of every linear of a block."""
    return spec.linear_shapes()


def to_tensors(state: BlockState, scheme: BlockScheme) -> dict[str, Array]:
    """Return the tensors of a block's file."""
    tensors = {}
    for name, values in state.folded.items():
        linear, _, kind = name.rpartition(".")
        tensors[name] = _core.pack(values, scheme[linear].bits) if kind == "codes" else values
    return tensors | {_LEARNABLE + name: np.asarray(values) for name, values in state.learnables.items()}


def from_bytes(data: bytes, spec: BlockSpec, scheme: BlockScheme, where: str) -> BlockState:
    """Read a block's file, which nobody vouches for; errors as :func:`tensors_from_bytes`."""
    tensors = tensors_from_bytes(data, spec, scheme, where)
    learnables = {k.removeprefix(_LEARNABLE): v for k, v in tensors.items() if k.startswith(_LEARNABLE)}
    shapes = linear_shapes(spec)
    folded = {}
    for name, values in tensors.items():
        linear, _, kind = name.rpartition(".")
        if not name.startswith(_LEARNABLE):
            coded = kind == "codes"
            folded[name] = _core.unpack(values, scheme[linear].bits, shapes[linear][1]) if coded else values
    return BlockState(folded, learnables)


def tensors_from_bytes(data: bytes, spec: BlockSpec, scheme: BlockScheme, where: str) -> dict[str, Array]:
    """Read a block's file as it is stored, codes packed.

    Raises
    ------
    CheckpointError
        Naming file and tensor: no safetensors, a tensor missing, unknown or of another shape or type, a scale
        that is not a positive finite number, a zero point outside the codes.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: not a valid safetensors file: {one_line(error)}") from error
    stored = {name: values for name, values in tensors.items() if not name.startswith(_LEARNABLE)}
    expected = _expected(spec, scheme)
    for name, layout in expected.items():
        if name not in stored and not layout.optional:
            raise CheckpointError(f"{where}: tensor {name!r} is missing")
    for name, values in stored.items():
        if name not in expected:
            raise CheckpointError(f"{where}: tensor {name!r} is unknown")
        _check_tensor(values, expected[name], f"{where}: {name}")
    return dict(tensors)


@dataclass(frozen=True)
class _Layout:
    dtype: type
    shape: tuple[int, ...]
    optional: bool = False
    bits: int = 8  # zero points have no more


def _expected(spec: BlockSpec, scheme: BlockScheme) -> dict[str, _Layout]:
    layouts = {}
    for name, (rows, columns) in linear_shapes(spec).items():
        linear = scheme[name]
        groups = (rows, linear.groups(columns))
        if linear.quantized:
            layouts[f"{name}.codes"] = _Layout(np.uint8, (rows, -(-columns * linear.bits // 8)))
            layouts[f"{name}.scale"] = _Layout(np.float32, groups)
            layouts[f"{name}.zero_point"] = _Layout(np.uint8, groups, bits=linear.bits)
        else:
            layouts[f"{name}.weight"] = _Layout(np.float32, (rows, columns))
        layouts[f"{name}.bias"] = _Layout(np.float32, (rows,), optional=True)
    hidden = spec.hidden_size
    for norm, width in spec.norm_widths().items():
        layouts[f"{norm}.weight"] = _Layout(np.float32, (width,))
        layouts[f"{norm}.bias"] = _Layout(np.float32, (width,), optional=True)
        if norm in ("norm1", "norm2"):
            layouts[f"{norm}.inverse"] = _Layout(np.float32, (hidden, hidden), optional=True)
    for name, (left, right) in spec.input_factors().items():
        layouts[f"{name}.left"] = _Layout(np.float32, (left, left), optional=True)
        layouts[f"{name}.right"] = _Layout(np.float32, (right, right), optional=True)
        layouts[f"{name}.clip"] = _Layout(np.float32, (2,), optional=True)
    return layouts


def _check_tensor(values: Array, layout: _Layout, where: str) -> None:
    if values.dtype != layout.dtype or values.shape != layout.shape:
        raise CheckpointError(
            f"{where} is {values.dtype} {list(values.shape)}, "
            f"expected {np.dtype(layout.dtype)} {list(layout.shape)}"
        )
    if where.endswith(".zero_point") and values.size and int(values.max()) >> layout.bits:
        raise CheckpointError(f"{where} holds {int(values.max())}, too large for {layout.bits} bits")
    if layout.dtype is np.float32 and not np.isfinite(values).all():
        raise CheckpointError(f"{where} holds NaN or infinity")
    if where.endswith(".scale") and values.size and float(values.min()) <= 0:
        raise CheckpointError(f"{where} holds {float(values.min())}, scales are positive")


def dequantized(folded: Mapping[str, Array], scheme: BlockScheme) -> Weights:
    """Return a block's weights as ``_core.block_forward`` takes them: exactly what training saw."""
    weights: Weights = {}
    for name, values in folded.items():
        linear, _, kind = name.rpartition(".")
        if kind == "codes":
            scale, zero_point = folded[f"{linear}.scale"], folded[f"{linear}.zero_point"]
            weights[f"{linear}.weight"] = _core.dequantize(
                values, scale, zero_point, group_size=scheme[linear].group_size or 0
            )
        elif kind not in ("scale", "zero_point"):
            weights[name] = values
    return weights


def row_codes(folded: Mapping[str, Array]) -> dict[str, Array]:
    """Return codes, scales and zero points of linears with one grid a row, for ``_core.block_forward``."""
    linears = [name.removesuffix(".codes") for name in folded if name.endswith(".codes")]
    rows = [name for name in linears if folded[f"{name}.scale"].shape[1] == 1]
    names = [f"{name}.{kind}" for name in rows for kind in ("codes", "scale", "zero_point")]
    return {name: folded[name] for name in names}


def online_maps(folded: Mapping[str, Array]) -> dict[str, F32]:
    """Return the maps that cost multiply-adds at run time, by the norm they stand behind."""
    return {name.partition(".")[0]: values for name, values in folded.items() if name.endswith(".inverse")}

"""Experts' matrices: a checkpoint has one of each expert, a block has them stacked by rows.

Quantizers go along rows, so what is stacked is quantized as it would be by itself: "gate.weight" [E F, H] is
"gate@0.weight" to "gate@E-1.weight" [F, H], and so are its codes, scales and zero points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.source import Layout
from omniquant.models.spec import EXPERTS, BlockSpec
from omniquant.models.tensors import TensorRef

# Between our name of a linear and the expert it is of: "up@3".
EXPERT = "@"

GGUF_EXPERTS = {
    "router": "ffn_gate_inp",
    "gate": "ffn_gate_exps",
    "up": "ffn_up_exps",
    "down": "ffn_down_exps",
    "shared_router": "ffn_gate_inp_shexp",
    "shared_gate": "ffn_gate_shexp",
    "shared_up": "ffn_up_shexp",
    "shared_down": "ffn_down_shexp",
}


def stored_shapes(spec: BlockSpec, layout: Layout = "safetensors") -> dict[str, tuple[int, int]]:
    """Return (out, in) of every linear as a layout stores it: only GGUF has experts stacked."""
    if layout == "gguf":
        return spec.linear_shapes()
    shapes: dict[str, tuple[int, int]] = {}
    for name, (rows, columns) in spec.linear_shapes().items():
        if not spec.num_experts or name not in EXPERTS:
            shapes[name] = (rows, columns)
            continue
        one = (rows // spec.num_experts, columns)
        shapes |= {f"{name}{EXPERT}{expert}": one for expert in range(spec.num_experts)}
    return shapes


def gguf_refs(refs: Mapping[str, TensorRef], spec: BlockSpec) -> dict[str, TensorRef]:
    """Return references into a GGUF file: experts are [E, out, in], a matrix of one row a vector."""
    shaped = dict(refs)
    for name, ref in refs.items():
        linear, _, kind = name.partition(".")
        if spec.num_experts and linear in EXPERTS and kind == "weight":
            rows, columns = ref.shape
            stored = (spec.num_experts, rows // spec.num_experts, columns)
            shaped[name] = TensorRef(ref.key, stored, None, ref.shape)
        elif linear == "shared_router":
            shaped[name] = TensorRef(ref.key, ref.shape[1:], None, ref.shape)
    return shaped


def stacked(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return a block's tensors with those of experts, in their order, stacked."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for name, values in tensors.items():
        linear, _, kind = name.partition(".")
        parts.setdefault(f"{linear.partition(EXPERT)[0]}.{kind}", []).append(values)
    return {name: of[0] if len(of) == 1 else np.concatenate(of) for name, of in parts.items()}


def unstacked(tensors: Mapping[str, npt.NDArray[Any]], spec: BlockSpec) -> dict[str, npt.NDArray[Any]]:
    """Return a block's tensors with those of experts one by one, as views: the inverse of :func:`stacked`."""
    if not spec.num_experts:
        return dict(tensors)
    parts: dict[str, npt.NDArray[Any]] = {}
    for name, values in tensors.items():
        linear, _, kind = name.partition(".")
        if linear not in EXPERTS:
            parts[name] = values
            continue
        for expert, rows in enumerate(values.reshape(spec.num_experts, -1, *values.shape[1:])):
            parts[f"{linear}{EXPERT}{expert}.{kind}"] = rows
    return parts

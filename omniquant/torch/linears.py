"""Linears of a transformers module replaced by ours, which compute with packed integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from omniquant.blockfile import Array, linear_shapes
from omniquant.config import QuantConfig
from omniquant.config.scheme import FLOAT_BITS
from omniquant.errors import ConfigError, UnsupportedError
from omniquant.kernels import Linear
from omniquant.models.registry import adapter_of
from omniquant.models.tensors import TensorRef, fused_rows, grouped, stored_tensors
from omniquant.quantized import CalibrationResult, QuantizedModel
from omniquant.torch.weights import check_tensor


class PackedLinear(torch.nn.Module):
    """y = x Wᵀ + bias through :class:`omniquant.kernels.Linear`: forward only, on the CPU.

    Parameters
    ----------
    linear : Linear
        The packed layer.
    in_features, out_features : int
        K and N.
    """

    def __init__(self, linear: Linear, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = linear
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y [..., N] of x [..., K], in x's dtype and on its device; NotFiniteError for a NaN in x."""
        y: torch.Tensor = _Apply.apply(x, self.linear)  # type: ignore[no-untyped-call, unused-ignore]
        return y

    def extra_repr(self) -> str:
        """Say what it is, for people."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, kernel={self.linear.kernel}"
        )


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, linear: Linear) -> torch.Tensor:
        values = x.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(linear(values)).to(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise UnsupportedError("packed linears compute forward only: they have no gradient")


def swap_linears(
    result: CalibrationResult | QuantizedModel,
    module: torch.nn.Module,
    *,
    linears_only: bool = False,
    threads: int | None = None,
) -> None:
    """Replace every linear of a transformers model's blocks by one on packed integers, in place.

    Inputs are rounded to the scheme's activation bits on the way (16: kept as exact as float32); norms take
    the gains that were folded into them. Embedding, last norm and head are left as they are.

    Parameters
    ----------
    result : CalibrationResult or QuantizedModel
        Finished.
    module : torch.nn.Module
        The model it was calibrated from, such as LlamaForCausalLM.
    linears_only : bool
        Leave Q, K and V in float where the scheme rounds them, which no linear can do.
    threads : int, optional
        Of each product; None: as `OMP_NUM_THREADS` says, else all processors.

    Raises
    ------
    UnsupportedError
        If the result has online maps or weights in float, or rounds Q, K or V without `linears_only`.
    ConfigError
        If the module is another model; nothing has been replaced then.
    """
    model = result.fold() if isinstance(result, CalibrationResult) else result
    _refuse(model, linears_only)
    adapter = adapter_of(model.config)
    slots = dict(module.named_parameters())
    new: list[tuple[str, PackedLinear]] = []
    norms: dict[str, Array] = {}
    for index in range(model.num_layers):
        refs = adapter.block_tensors(model.architecture, index, "safetensors")
        folded = model.state(index).folded
        for key, names in grouped(refs, [f"{name}.weight" for name in linear_shapes(model.spec)]).items():
            place, shape = key.removesuffix(".weight"), refs[names[0]].shape
            _check_linear(module, place, shape)
            scheme = _one_scheme(model.scheme, index, key, names)
            fused = _fused([refs[name] for name in names], names, folded)
            out, width = shape[::-1] if refs[names[0]].transposed else shape
            new.append((place, PackedLinear(_packed(fused, scheme, threads), width, out)))
        norms |= _norms(folded, refs, slots, index)
    with torch.no_grad():
        for name, values in norms.items():
            slots[name].copy_(torch.from_numpy(np.array(values)))
    for place, layer in new:
        parent, _, child = place.rpartition(".")
        setattr(module.get_submodule(parent), child, layer)


def _refuse(model: QuantizedModel, linears_only: bool) -> None:
    scheme = model.scheme
    if model.options.norm_map == "online" or model.options.input_map != "none":
        raise UnsupportedError(
            "packed linears cannot hold an online map; nearest: calibrate with --norm-map diagonal"
        )
    if model.options.rotation != "none":
        raise UnsupportedError(
            "the module's embedding and head are not rotated; nearest: export to huggingface, and load that"
        )
    if model.spec.num_experts:
        raise UnsupportedError("packed linears cannot hold experts; nearest: export to huggingface")
    if model.options.lac:
        raise UnsupportedError("packed linears cannot clip activations; nearest: calibrate with lac=False")
    if not all(own.w_bits < FLOAT_BITS for own in scheme.schemes):
        raise UnsupportedError(f"weights in float ({scheme}) have no packed linears; nearest: write_weights")
    attention = (scheme.q_bits, scheme.k_bits, scheme.v_bits)
    if not linears_only and any(int(bits or 0) < FLOAT_BITS for bits in attention):
        raise UnsupportedError(
            f"linears cannot round Q, K and V ({scheme}); nearest: linears_only=True, or a scheme with KV16"
        )


def _check_linear(module: torch.nn.Module, place: str, shape: tuple[int, ...]) -> None:
    try:
        found = module.get_submodule(place)
    except AttributeError:
        raise ConfigError(f"the module has no {place}: it is another model") from None
    # GPT-2's Conv1D is a linear whose matrix is stored [in, out].
    if not isinstance(found, torch.nn.Linear) and type(found).__name__ != "Conv1D":
        raise ConfigError(f"{place} is a {type(found).__name__} in the module, no Linear")
    have = list(found.weight.shape)  # type: ignore[union-attr, arg-type, unused-ignore]
    if have != list(shape):
        raise ConfigError(f"{place} is {have} in the module, {list(shape)} in the result")


def _one_scheme(scheme: QuantConfig, index: int, key: str, weights: list[str]) -> QuantConfig:
    own = [scheme.of_linear(index, weight.removesuffix(".weight")) for weight in weights]
    if any(each != own[0] for each in own):
        have = ", ".join(each.text for each in own)
        raise UnsupportedError(
            f"block {index}: {key} holds {', '.join(weights)}, which have {have}; "
            "nearest: one scheme for all of them"
        )
    return own[0]


def _fused(refs: list[TensorRef], weights: list[str], folded: Mapping[str, Array]) -> dict[str, Array]:
    """Return the codes, scales, zero points and bias of linears as those of the one the module has."""
    names = [weight.removesuffix(".weight") for weight in weights]
    fused = {
        kind: fused_rows(refs, [folded[f"{name}.{kind}"] for name in names])
        for kind in ("codes", "scale", "zero_point")
    }
    if any(f"{name}.bias" in folded for name in names):
        none = [np.zeros(len(folded[f"{name}.codes"]), np.float32) for name in names]
        biases = [folded.get(f"{name}.bias", zero)[:, None] for name, zero in zip(names, none, strict=True)]
        fused["bias"] = fused_rows(refs, biases)[:, 0]
    return fused


def _packed(linear: Mapping[str, Array], scheme: QuantConfig, threads: int | None) -> Linear:
    columns = linear["codes"].shape[1]
    group = scheme.group_size
    return Linear(
        linear["codes"],
        linear["scale"],
        None if scheme.w_symmetric else linear["zero_point"],
        bits=scheme.w_bits,
        group_size=None if group is None else min(group, columns),
        activations="float" if scheme.a_bits >= FLOAT_BITS else f"int{scheme.a_bits}",
        symmetric_activations=scheme.a_symmetric,
        full_range_activations=scheme.a_full_range,
        bias=linear.get("bias"),
        threads=threads,
    )


def _norms(
    folded: Mapping[str, Array], refs: Mapping[str, TensorRef], slots: Mapping[str, Any], index: int
) -> dict[str, Array]:
    """Return the folded norms by the module's names, as the module stores them."""
    norms: dict[str, Array] = {}
    for ours, values in folded.items():
        if not ours.startswith("norm"):
            continue
        if ours not in refs:
            raise UnsupportedError(
                f"block {index}: {ours}: a shift left a bias, but the architecture has no slot for one; "
                "nearest: calibrate with shift=False"
            )
        check_tensor(slots, refs[ours].key, values.shape)
        norms |= stored_tensors(refs, {ours: values})
    return norms

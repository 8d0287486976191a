"""Folded, fake-quantized weights into a transformers model, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omniquant.errors import ConfigError, UnsupportedError
from omniquant.export.content import Content
from omniquant.export.huggingface import folded_tensors
from omniquant.quantized import CalibrationResult

if TYPE_CHECKING:
    import torch


def write_weights(result: CalibrationResult, module: torch.nn.Module, *, weights_only: bool = False) -> None:
    """Write the folded, fake-quantized weights of a result into a transformers model, in place.

    The module then computes what the result computes, and torch.export and the ONNX exporter see ordinary
    linears. Weights take the module's own dtype and device; embedding and head are left as they are.

    Parameters
    ----------
    result : CalibrationResult
        Finished.
    module : torch.nn.Module
        The model it was calibrated from, such as LlamaForCausalLM.
    weights_only : bool
        Leave quantized activations, Q, K and V in float, which plain linears cannot round.

    Raises
    ------
    UnsupportedError
        If the result is in a rotated basis, has online maps, or quantizes activations and `weights_only` is
        not given.
    ConfigError
        If a tensor is missing in the module or has another shape; nothing has been written then.
    """
    import torch

    if result.options.norm_map == "online" or result.options.input_map != "none":
        raise UnsupportedError(
            "torch linears cannot hold an online map; nearest: calibrate with --norm-map diagonal"
        )
    if result.options.rotation != "none":
        raise UnsupportedError(
            "the module's embedding and head are not rotated; nearest: export to huggingface, and load that"
        )
    if not (weights_only or result.scheme.weight_only):
        raise UnsupportedError(
            f"torch linears cannot hold quantized activations, Q, K or V ({result.scheme}); "
            "nearest: weights_only=True"
        )
    content = Content(result, weights_only)
    slots: dict[str, Any] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for index in range(result.header.num_layers):
        for name, values in folded_tensors(content, index).items():
            check_tensor(slots, name, values.shape)
    with torch.no_grad():
        for index in range(result.header.num_layers):
            for name, values in folded_tensors(content, index).items():
                slots[name].copy_(torch.from_numpy(values.copy()))


def check_tensor(slots: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless a module's tensors have this one, in this shape."""
    if name not in slots:
        raise ConfigError(f"the module has no parameter {name}: it is another model")
    if tuple(slots[name].shape) != shape:
        raise ConfigError(f"{name} is {list(slots[name].shape)} in the module, {list(shape)} in the result")

"""A finished result as the writers of formats see it: linears with their codes, and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.blockfile import online_maps
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout
from omniquant.checkpoint.text_settings import TextSettings, settings_from_config
from omniquant.config import QuantConfig
from omniquant.errors import CheckpointError, UnsupportedError
from omniquant.forward import F32
from omniquant.models.adapter import FamilyAdapter
from omniquant.models.experts import EXPERT, stored_shapes, unstacked
from omniquant.models.registry import adapter_of
from omniquant.models.tensors import Array, TensorRef, stored_tensors
from omniquant.quantized import CalibrationResult

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Linear:
    """One linear of a block, W = scale (codes - zero_point) in groups along the inputs.

    Parameters
    ----------
    name : str
        Ours: q, k, v, o, gate, up or down; "gate@3" is the fourth expert's.
    codes : ndarray of uint8 [N, K]
    scale : ndarray of float32 [N, G]
    zero_point : ndarray of uint8 [N, G]
    bias : ndarray of float32 [N] or None
    group : int
        Inputs that share a scale, K where a row has one.
    bits : int
    symmetric : bool
        Every zero point is 2^(bits - 1).
    """

    name: str
    codes: U8
    scale: F32
    zero_point: U8
    bias: F32 | None
    group: int
    bits: int
    symmetric: bool

    def weight(self) -> F32:
        """Return the dequantized weight [N, K]: what the calibration computed with."""
        values: F32 = _core.dequantize(self.codes, self.scale, self.zero_point, group_size=self.group)
        return values


@dataclass(frozen=True)
class Block:
    """A block: its quantized linears, the weights left in float, and its norms.

    Parameters
    ----------
    linears : dict
        By our names; empty where the scheme leaves weights in float.
    tensors : dict
        Everything else by our names: "norm1.weight", "q.bias", and "q.weight" of weights left in float.
    online : dict
        Maps [H, H] that are multiplied at run time, by the norm they stand behind.
    """

    linears: dict[str, Linear]
    tensors: dict[str, F32]
    online: dict[str, F32]


@dataclass(frozen=True)
class Content:
    """What an export is made from.

    Parameters
    ----------
    result : CalibrationResult
        Finished.
    weights_only : bool
        Leave out the quantizers of activations.
    variant : str
        Of the format, as its writer knows it.
    perplexity : mapping
        Measured values for the model card, by what they were measured on.
    """

    result: CalibrationResult
    weights_only: bool = False
    variant: str = ""
    perplexity: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.result.fold()  # raises where blocks are missing

    @property
    def scheme(self) -> QuantConfig:
        """The scheme, as far as it is exported."""
        scheme = self.result.scheme
        if not self.weights_only:
            return scheme
        own = tuple((name, _in_float(each)) for name, each in scheme.overrides)
        return replace(_in_float(scheme), overrides=own)

    def block(self, index: int, layout: Layout = "safetensors") -> Block:
        """Return a block, its experts one by one or, for GGUF, stacked."""
        spec = self.result.architecture.spec
        state = self.result.state(index).folded
        folded: dict[str, Any] = dict(state) if layout == "gguf" else unstacked(state, spec)
        of_linear = self.result.scheme.block(index)
        scheme = {name: of_linear[name.partition(EXPERT)[0]] for name in stored_shapes(spec, layout)}
        linears = {
            name: Linear(
                name,
                folded[f"{name}.codes"],
                folded[f"{name}.scale"],
                folded[f"{name}.zero_point"],
                folded.get(f"{name}.bias"),
                min(scheme[name].group_size or columns, columns),
                scheme[name].bits,
                scheme[name].symmetric,
            )
            for name, (_, columns) in stored_shapes(spec, layout).items()
            if f"{name}.codes" in folded
        }
        tensors = {
            name: values
            for name, values in folded.items()
            if name.rpartition(".")[2] in ("weight", "bias") and name.rpartition(".")[0] not in linears
        }
        return Block(linears, tensors, online_maps(folded))

    def refs(self, index: int, layout: Layout) -> dict[str, TensorRef]:
        """Map our names of a block's tensors ("q.weight", "norm1.weight") to those of a layout."""
        return dict(self._adapter.block_tensors(self.result.architecture, index, layout))

    @property
    def gguf_architecture(self) -> str:
        """The general.architecture llama.cpp knows the family by."""
        return self._adapter.gguf_architecture

    @property
    def class_name(self) -> str:
        """The class of transformers that reads the model."""
        return self._adapter.classes[str(self.result.fold().config["model_type"])]

    def stored(self, tensors: Mapping[str, Array], index: int, layout: Layout) -> dict[str, Array]:
        """Return tensors of a block as a layout stores them, by its names.

        Raises
        ------
        UnsupportedError
            Where there is no slot for a bias.
        """
        refs = self.refs(index, layout)
        homeless = next((name for name in tensors if name not in refs), None)
        if homeless is not None:
            raise UnsupportedError(
                f"block {index}: {homeless}: a shift left a bias, but the architecture has no slot for one; "
                "nearest: calibrate with shift=False"
            )
        return stored_tensors(refs, tensors)

    def outer_refs(self, layout: Layout) -> dict[str, TensorRef]:
        """Map "embedding.weight", "final_norm.weight", and what else there is, to tensors of a layout."""
        return dict(self._adapter.outer_tensors(self.result.architecture, layout))

    def outer_tensors(self) -> dict[str, F32]:
        """Return what lies outside the blocks as Hugging Face stores it."""
        model, refs = self.result.fold(), self.outer_refs("safetensors")
        tensors = {"embedding.weight": model.embedding(np.arange(self.result.architecture.vocab_size))}
        if "lm_head.weight" in refs:
            tensors["lm_head.weight"] = model.lm_head()
        return stored_tensors(refs, tensors | self.small_outer())

    def small_outer(self) -> dict[str, F32]:
        """Return what lies outside the blocks but embedding and head, by our names."""
        ends = self.result.fold().ends()
        tensors = {f"final_norm.{kind}": values for kind, values in ends.final_norm.items()}
        tensors |= {f"embedding_norm.{kind}": values for kind, values in ends.embedding_norm.items()}
        if ends.positions is not None:
            tensors["positions.weight"] = ends.positions
        if ends.lm_head_bias is not None:
            tensors["lm_head.bias"] = ends.lm_head_bias
        return tensors

    def tokenizer_json(self) -> str | None:
        """Return the tokenizer's text, None where the result holds none."""
        try:
            return str(self.result.fold().tokenizer.to_str())
        except CheckpointError:
            return None

    def text_settings(self) -> TextSettings:
        """Return special tokens and chat template, as far as they are known."""
        model = self.result.fold()
        try:
            return model.text
        except CheckpointError:  # no tokenizer
            return settings_from_config(Fields(model.config, "config.json"))

    @property
    def _adapter(self) -> FamilyAdapter:
        return adapter_of(self.result.fold().config)


def _in_float(scheme: QuantConfig) -> QuantConfig:
    """Return a scheme's weights alone."""
    return QuantConfig(scheme.w_bits, 16, scheme.group_size, scheme.w_symmetric)

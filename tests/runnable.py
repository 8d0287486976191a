"""Random models an engine can run, of any shape of block, and their logits by the fake-quantized path."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.blockfile import BlockState, dequantized, linear_shapes, to_tensors
from omniquant.config import QuantConfig
from omniquant.models.ends import Ends
from omniquant.models.rope import rope_tables
from omniquant.models.spec import BlockSpec
from omniquant.runtime.matrix import Matrix

F32 = npt.NDArray[np.float32]
NONE = np.zeros((0, 0), np.float32)


class RandomModel:
    """Weights drawn from a seed and rounded to nearest, with what an engine asks of a model.

    Parameters
    ----------
    spec : BlockSpec
    scheme : str
    biases, online, inputs : bool
        Biases everywhere; a dense map behind each norm; Kronecker maps and clipping of every linear's input.
    """

    name = "random"
    max_positions = 512

    def __init__(
        self,
        spec: BlockSpec,
        scheme: str | QuantConfig,
        *,
        layers: int = 2,
        vocab: int = 37,
        biases: bool = False,
        online: bool = False,
        inputs: bool = False,
        seed: int = 0,
    ) -> None:
        self.spec, self.num_layers = spec, layers
        self.scheme = QuantConfig.parse(scheme) if isinstance(scheme, str) else scheme
        self._rng = np.random.default_rng(seed)
        self._biases, self._online, self._inputs = biases, online, inputs
        self.blocks = [self._block(index) for index in range(layers)]
        self.embedding = self._normal(vocab, spec.hidden_size)
        self.head = self._normal(vocab, spec.hidden_size)
        self.norm = {"weight": 1 + self._normal(spec.hidden_size) / 4}
        if spec.norm == "layer":
            self.norm["bias"] = self._normal(spec.hidden_size) / 4

    def _normal(self, *shape: int) -> F32:
        return self._rng.standard_normal(shape).astype(np.float32)

    def _block(self, index: int) -> dict[str, Any]:
        schemes, tensors = self.scheme.block(index), {}
        for name, shape in linear_shapes(self.spec).items():
            weight = self._normal(*shape) / np.sqrt(shape[1], dtype=np.float32)
            scheme = schemes[name]
            if scheme.quantized:
                parts = _core.quantize(
                    weight,
                    bits=scheme.bits,
                    group_size=scheme.group_size or 0,
                    symmetric=scheme.symmetric,
                )
                tensors |= {
                    f"{name}.{k}": p for k, p in zip(("codes", "scale", "zero_point"), parts, strict=True)
                }
            else:
                tensors[f"{name}.weight"] = weight
            if self._biases:
                tensors[f"{name}.bias"] = self._normal(shape[0]) / 4
        hidden = self.spec.hidden_size
        for norm, width in self.spec.norm_widths().items():
            tensors[f"{norm}.weight"] = 1 + self._normal(width) / 4
            if self.spec.norm == "layer":
                tensors[f"{norm}.bias"] = self._normal(width) / 4
            if self._online and norm in ("norm1", "norm2"):
                tensors[f"{norm}.inverse"] = self._mixing(hidden, hidden)
        for name, sizes in self.spec.input_factors().items():
            if self._inputs:
                tensors |= {
                    f"{name}.{s}": self._mixing(n, 4 * n)
                    for s, n in zip(("left", "right"), sizes, strict=True)
                }
                tensors[f"{name}.clip"] = np.array([1.5, 0.8], np.float32)
        return tensors

    def _mixing(self, n: int, share: int) -> F32:
        return (np.eye(n) + self._rng.standard_normal((n, n)) / share).astype(np.float32)

    def tensors(self, index: int) -> dict[str, Any]:
        return to_tensors(BlockState(self.blocks[index], {}), self.scheme.block(index))

    def matrices(self) -> tuple[Matrix, Matrix]:
        return Matrix.exact(self.embedding), Matrix.exact(self.head)

    def ends(self) -> Ends:
        return Ends(self.spec, self.norm, 0.0, {}, None, None, 0.0)

    def spec_of(self, layer: int) -> BlockSpec:
        return self.spec

    def layer_kind(self, layer: int) -> int:
        return 0

    def rope_tables(self, length: int, layer: int = 0) -> tuple[F32, F32]:
        d = self.spec.rotary
        return rope_tables(10000.0 ** (-np.arange(0, d, 2) / d), length)

    def expected_logits(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return logits [n, V]: blocks by the core's fake-quantized forward pass, norm and head by NumPy."""
        ids = np.asarray(tokens)
        x = self.embedding[ids][None]
        cos, sin = self.rope_tables(len(ids)) if self.spec.rope else (NONE, NONE)
        for index, folded in enumerate(self.blocks):
            weights = dequantized(folded, self.scheme.block(index))
            activation = self.scheme.activation(index)
            x = _core.block_forward(self.spec.to_core(), weights, x, cos, sin, activation=activation)
        h = x[0].astype(np.float64)
        if self.spec.norm == "layer":
            h = h - h.mean(axis=-1, keepdims=True)
        h = h / np.sqrt((h * h).mean(axis=-1, keepdims=True) + self.spec.norm_eps) * self.norm["weight"]
        return np.asarray((h + self.norm.get("bias", 0)) @ self.head.T.astype(np.float64))

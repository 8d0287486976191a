"""A model in a rotated basis: the same function, with outliers spread over all channels.

QuaRot (Ashkboos et al. 2024, arXiv 2404.00456). The gains of the norms go into the linears behind them,
which leaves an RMSNorm that commutes with every rotation; then the residual stream is turned by Q = D T,
random signs times the fixed orthogonal matrix of ``csrc/math/hadamard.h``, and each head's values by T_d:

    embedding E Q     q, k, v, gate, up:  W G Q     o, down:  Q^T W     head  W G Q
    v: T_d W, head by head                o: W T_d, head by head

Nothing of that is left at run time. *Online* rotations are: T_n over the heads before `o`, T_F before
`down`, and, where Q or K are quantized, T_d on their heads behind the rotary positions. They are operators of
the block (``BlockSpec.rotate_*``), so the rotated model is an ordinary model of a network that has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.checkpoint.source import F32
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.config.scheme import FLOAT_BITS
from omniquant.errors import UnsupportedError
from omniquant.models.adapter import Architecture
from omniquant.models.model import Model
from omniquant.models.spec import BlockSpec
from omniquant.models.view import ModelView

_MLP_READERS = ("gate", "up", "router", "shared_gate", "shared_up", "shared_router")
_READERS = dict.fromkeys(("q", "k", "v"), "norm1") | dict.fromkeys(_MLP_READERS, "norm2")
_WRITERS = ("o", "down", "shared_down")


@dataclass(frozen=True)
class Rotation:
    """Which rotations.

    Parameters
    ----------
    seed : int
        Of the signs of the residual basis.
    online : bool
        Also before `o` and `down`, at run time.
    qk : bool
        Also on Q and K, at run time.
    """

    seed: int = 0
    online: bool = False
    qk: bool = False

    @classmethod
    def of(cls, options: CalibrationOptions, scheme: QuantConfig) -> Rotation | None:
        """Return what a calibration asks for; None: the model's own basis."""
        if options.rotation == "none":
            return None
        online = options.rotation == "online"
        quantized = any(int(bits or 0) < FLOAT_BITS for bits in (scheme.q_bits, scheme.k_bits))
        return cls(options.seed, online, online and quantized)

    def architecture(self, original: Architecture) -> Architecture:
        """Return the architecture of the rotated model: an untied head, and the online operators.

        Raises
        ------
        UnsupportedError
            If the block does not commute with a rotation of its residual stream.
        """
        if original.spec.norm != "rms":
            raise UnsupportedError(
                "rotation: a LayerNorm subtracts the mean over channels, which no rotation keeps; "
                "nearest: rotation none"
            )
        if original.spec.num_experts and self.online:
            raise UnsupportedError(
                "rotation: inputs of down are not turned at run time in experts; nearest: rotation folded"
            )
        if original.spec.post_norms or original.embedding_norm or original.learned_positions:
            raise UnsupportedError(
                "rotation: what norms or a table of positions add to the residual stream cannot be turned; "
                "nearest: rotation none"
            )
        other = original.other and replace(original.other, spec=self.spec(original.other.spec))
        return replace(original, spec=self.spec(original.spec), other=other, tied_embeddings=False)

    def spec(self, spec: BlockSpec) -> BlockSpec:
        """Return a block's spec with the online operators."""
        return replace(spec, rotate_qk=self.qk, rotate_heads=self.online, rotate_down=self.online)


class RotatedModel(ModelView):
    """A view of a model in a rotated basis, computed a block at a time.

    Parameters
    ----------
    model : Model
        It is not changed.
    rotation : Rotation

    Raises
    ------
    UnsupportedError
        If its blocks do not commute with a rotation.
    """

    def __init__(self, model: Model, rotation: Rotation) -> None:
        super().__init__(model)
        self.config: Mapping[str, object] = {**model.config, "tie_word_embeddings": False}
        self.architecture = rotation.architecture(model.architecture)
        hidden = self.spec.hidden_size
        bits = np.random.PCG64(rotation.seed).random_raw(hidden) & np.uint64(1)
        self._signs: F32 = np.where(bits, -1, 1).astype(np.float32)

    def embedding(self, tokens: npt.NDArray[np.integer]) -> F32:
        """Return the embedding's rows [.., H] of tokens."""
        return self._reader(self._model.embedding(tokens), None)

    def outer(self, part: str) -> dict[str, F32]:
        """Return a small part outside the blocks: the gain of the last norm is in the head."""
        if part == "final_norm":
            return {"weight": np.ones(self.spec.hidden_size, np.float32)}
        return self._model.outer(part)

    def lm_head(self, rows: slice | None = None) -> F32:
        """Return the output matrix [V, H], or some rows of it."""
        return self._reader(self._model.lm_head(rows), self._model.outer("final_norm")["weight"])

    def block(self, index: int) -> dict[str, F32]:
        """Return the tensors of one block in the rotated basis; see :meth:`Model.block`."""
        tensors = self._model.block(index)
        for name, norm in _READERS.items():
            if f"{name}.weight" in tensors:
                gain = tensors.get(
                    f"{norm}.weight", tensors["norm1.weight"]
                )  # one norm may serve both halves
                tensors[f"{name}.weight"] = self._reader(tensors[f"{name}.weight"], gain)
        for name in _WRITERS:
            if f"{name}.weight" in tensors:
                tensors[f"{name}.weight"] = self._writer(tensors[f"{name}.weight"])
            if f"{name}.bias" in tensors:
                tensors[f"{name}.bias"] = self._writer(tensors[f"{name}.bias"][:, None])[:, 0]
        for norm in tensors.keys() & {"norm1.weight", "norm2.weight"}:
            tensors[norm] = np.ones(self.spec.hidden_size, np.float32)
        _rotate_heads(tensors, self.spec)
        if self.spec.rotate_down:
            tensors["down.weight"] = _turned(tensors["down.weight"], (self.spec.ffn_size, 1))
        return tensors

    def _reader(self, rows: F32, gain: F32 | None) -> F32:
        """Return rows [.., H] G Q."""
        factor = self._signs if gain is None else self._signs * gain
        return _turned(rows * factor, (self.spec.hidden_size, 1))

    def _writer(self, rows: F32) -> F32:
        """Return Q^T rows [H, K], of stacked experts [E H, K] each by itself."""
        each = rows.reshape(-1, self.spec.hidden_size, rows.shape[1]).swapaxes(1, 2)
        turned = self._reader(each, None).swapaxes(1, 2)
        return np.ascontiguousarray(turned).reshape(rows.shape)


def _rotate_heads(tensors: dict[str, F32], spec: BlockSpec) -> None:
    """Rotate v's output by T_d head by head, and o's input back; also over the heads where the block does."""
    d = spec.head_dim
    tensors["v.weight"] = _turned(tensors["v.weight"], (d, spec.hidden_size))
    if "v.bias" in tensors:
        tensors["v.bias"] = _turned(tensors["v.bias"], (d, 1))
    tensors["o.weight"] = _turned(tensors["o.weight"], (d, 1))
    if spec.rotate_heads:
        tensors["o.weight"] = _turned(tensors["o.weight"], (spec.num_heads, d))


def fixed_rotation(n: int) -> F32:
    """Return the matrix T_n [n, n], symmetric and orthogonal."""
    return _turned(np.eye(n, dtype=np.float32), (n, 1))


def rotation_cost(n: int) -> int:
    """Return the multiply-adds of a vector of n times T_n: n for every factor 2, and n m for its odd part."""
    twos = (n & -n).bit_length() - 1
    odd = n >> twos
    return n * (twos + (odd if odd > 1 else 0))


def _turned(values: F32, axes: tuple[int, int]) -> F32:
    """Return values, seen as [.., n, stride], times T_n along n; every row by itself, in one order."""
    turned: npt.NDArray[Any] = _core.hadamard(np.ascontiguousarray(values).reshape(-1, *axes))
    return turned.reshape(values.shape)

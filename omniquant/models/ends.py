"""What stands before the first block and behind the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.checkpoint.source import F32
from omniquant.models.adapter import Architecture
from omniquant.models.spec import BlockSpec


class Outside(Protocol):
    """What has an architecture, and the tensors outside its blocks."""

    @property
    def architecture(self) -> Architecture:
        """What the configuration says."""

    def outer(self, part: str) -> dict[str, F32]:
        """Return "weight" and "bias", as far as it has them; of "lm_head" the bias alone."""


@dataclass(frozen=True)
class Ends:
    """The small tensors and numbers outside the blocks.

    Parameters
    ----------
    spec
        For the kind of norm.
    final_norm
        "weight" [H] and, of LayerNorm, "bias" [H].
    embedding_scale
        What the embedding's rows are multiplied by; 0: nothing.
    embedding_norm
        As `final_norm`, of the embedding's rows; empty: none.
    positions
        Learned positions [P, H], added; None: none.
    lm_head_bias
        [V], or None.
    logit_cap
        Logits become cap tanh(logit / cap); 0: they stay.
    """

    spec: BlockSpec
    final_norm: dict[str, F32]
    embedding_scale: float
    embedding_norm: dict[str, F32]
    positions: F32 | None
    lm_head_bias: F32 | None
    logit_cap: float

    def enter(self, rows: F32, positions: npt.NDArray[np.integer] | None = None) -> F32:
        """Return what the first block reads [.., T, H] of the embedding's rows.

        `positions` [T] are theirs; None: from 0 on.
        """
        x = rows * np.float32(self.embedding_scale) if self.embedding_scale else rows
        if self.embedding_norm:
            x = normed(x, self.spec, self.embedding_norm)
        if self.positions is None:
            return x
        return x + (self.positions[: x.shape[-2]] if positions is None else self.positions[positions])

    def logits(self, x: F32, lm_head: F32, *, threads: int = 1) -> F32:
        """Return logits [N, T, V] of what the last block gives [N, T, H]."""
        h = normed(x, self.spec, self.final_norm).reshape(-1, x.shape[-1])
        y = _core.matmul(h, lm_head, transpose_b=True, threads=threads).reshape(*x.shape[:-1], -1)
        y = y if self.lm_head_bias is None else y + self.lm_head_bias
        cap = np.float32(self.logit_cap)
        return np.asarray(cap * np.tanh(y / cap), np.float32) if self.logit_cap else y


def normed(x: F32, spec: BlockSpec, weights: dict[str, F32]) -> F32:
    """Return the model's kind of norm over the last axis of x [.., H], computed in double."""
    wide = x.astype(np.float64)
    if spec.norm == "layer":
        wide -= wide.mean(axis=-1, keepdims=True)
    wide /= np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + spec.norm_eps)
    return np.asarray(wide * weights["weight"] + weights.get("bias", 0), np.float32)


def ends_of(model: Outside) -> Ends:
    """Read the ends of a model."""
    architecture = model.architecture
    return Ends(
        spec=architecture.spec,
        final_norm=model.outer("final_norm"),
        embedding_scale=architecture.embedding_scale,
        embedding_norm=model.outer("embedding_norm"),
        positions=model.outer("positions").get("weight"),
        lm_head_bias=model.outer("lm_head").get("bias"),
        logit_cap=architecture.logit_cap,
    )

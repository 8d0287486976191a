"""What a model family must tell: its configuration's meaning and where its tensors lie.

An adapter is one small file. It knows names and layouts, never numbers or loops: everything that
computes follows the :class:`BlockSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout, TensorSource
from omniquant.models.rope import Rope
from omniquant.models.spec import BlockSpec
from omniquant.models.tensors import TensorRef


@dataclass(frozen=True)
class LayerKind:
    """A kind of block: its spec, and its rotary positions or None."""

    spec: BlockSpec
    rope: Rope | None


@dataclass(frozen=True)
class Architecture:
    """What a configuration says about a whole model.

    Parameters
    ----------
    spec
        The shape of every block.
    num_layers, vocab_size, max_positions
        Sizes around the blocks.
    tied_embeddings
        The head is the embedding.
    rope
        Rotary positions, or None.
    biases
        The linears and norms that carry biases, by our names: "q", "norm1", "final_norm", "lm_head", ...
    other_layers, other
        Blocks whose window or rotary positions differ, and what theirs are. All weights have one shape.
    embedding_scale
        What the embedding's rows are multiplied by on the way to the first block; 0: nothing.
    embedding_norm
        A norm of the embedding's rows.
    learned_positions
        Positions come from a table that is added to the embedding's rows.
    logit_cap
        Logits become cap tanh(logit / cap); 0: they stay.
    """

    spec: BlockSpec
    num_layers: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    rope: Rope | None
    biases: frozenset[str] = frozenset()
    other_layers: frozenset[int] = frozenset()
    other: LayerKind | None = None
    embedding_scale: float = 0.0
    embedding_norm: bool = False
    learned_positions: bool = False
    logit_cap: float = 0.0

    def kind_of(self, layer: int) -> LayerKind:
        """Return the kind of a block."""
        if self.other is not None and layer in self.other_layers:
            return self.other
        return LayerKind(self.spec, self.rope)

    def unusual(self) -> tuple[str, ...]:
        """Return what the model has outside its blocks, or between them, beyond LLaMA's kind, for people."""
        has = {
            "a scaled embedding": self.embedding_scale != 0,
            "a norm of the embedding": self.embedding_norm,
            "learned positions": self.learned_positions,
            "a bias of the head": "lm_head" in self.biases,
            "capped logits": self.logit_cap != 0,
            "blocks of two kinds": self.other is not None,
        }
        return tuple(what for what, is_so in has.items() if is_so)


class FamilyAdapter(Protocol):
    """A family of models: how to read its configuration and find its tensors."""

    @property
    def name(self) -> str:
        """The family's name, for people."""

    @property
    def classes(self) -> Mapping[str, str]:
        """The Hugging Face model_type values it serves, and the class of transformers for each."""

    @property
    def gguf_architectures(self) -> tuple[str, ...]:
        """The GGUF general.architecture values it serves."""

    @property
    def gguf_architecture(self) -> str:
        """The general.architecture it is written as; empty: llama.cpp has none for it."""

    def gguf_lacks(self, architecture: Architecture) -> tuple[str, ...]:
        """Return what of a model llama.cpp's own graph of the family does not compute, for people."""

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json; every impossible field is a CheckpointError."""

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into the config.json the same model would have."""

    def block_tensors(
        self, architecture: Architecture, layer: int, layout: Layout
    ) -> Mapping[str, TensorRef]:
        """Map our names ("q.weight", "down.bias", ...) of one block to the checkpoint's tensors."""

    def outer_tensors(self, architecture: Architecture, layout: Layout) -> Mapping[str, TensorRef]:
        """Map "embedding.weight", "final_norm.weight" and, where the family has them, the others.

        Those are "lm_head.weight" (untied), "positions.weight", "embedding_norm.weight" and biases.
        """

    def layer_of(self, key: str, layout: Layout) -> int | None:
        """Return the block a checkpoint's tensor belongs to, by its name."""

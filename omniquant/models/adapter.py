"""What a model family must tell: its configuration's meaning and where its tensors lie.

An adapter is one small file. It knows names and layouts, never numbers or loops: everything that
computes follows the :class:`BlockSpec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import F32, Layout, TensorSource
from omniquant.models.rope import Rope
from omniquant.models.spec import BlockSpec


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
    attention_bias, mlp_bias
        Whether the linears of that part carry biases.
    """

    spec: BlockSpec
    num_layers: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    rope: Rope | None
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True)
class TensorRef:
    """One of our tensors inside a checkpoint.

    Parameters
    ----------
    key
        Its name there.
    shape
        The shape it must have there.
    convert
        Turns what is stored into ours (row order, transposition, offset). For the embedding it is applied
        to some rows at a time.
    """

    key: str
    shape: tuple[int, ...]
    convert: Callable[[F32], F32] | None = None


class FamilyAdapter(Protocol):
    """A family of models: how to read its configuration and find its tensors."""

    @property
    def name(self) -> str:
        """The family's name, for people."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """The Hugging Face model_type values it serves."""

    @property
    def gguf_architectures(self) -> tuple[str, ...]:
        """The GGUF general.architecture values it serves."""

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json; every impossible field is a CheckpointError."""

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into the config.json the same model would have."""

    def block_tensors(
        self, architecture: Architecture, layer: int, layout: Layout
    ) -> Mapping[str, TensorRef]:
        """Map our names ("q.weight", "down.bias", ...) of one block to the checkpoint's tensors."""

    def outer_tensors(self, architecture: Architecture, layout: Layout) -> Mapping[str, TensorRef]:
        """Map "embedding.weight", "final_norm.weight" and, if untied, "lm_head.weight"."""

    def layer_of(self, key: str, layout: Layout) -> int | None:
        """Return the block a checkpoint's tensor belongs to, by its name."""

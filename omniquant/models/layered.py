"""What follows from an architecture alone, for everything that has one."""

from __future__ import annotations

from typing import Protocol

from omniquant.checkpoint.source import F32
from omniquant.errors import ConfigError, DataError
from omniquant.models.adapter import Architecture
from omniquant.models.rope import rope_tables
from omniquant.models.spec import BlockSpec


class Described(Protocol):
    """A name and an architecture."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def architecture(self) -> Architecture:
        """What the configuration says."""


class Layered:
    """Sizes, the spec of each block and its rotary positions."""

    @property
    def spec(self: Described) -> BlockSpec:
        """The shape of every block; see :meth:`spec_of` for what differs between them."""
        return self.architecture.spec

    @property
    def num_layers(self: Described) -> int:
        """The number of blocks."""
        return self.architecture.num_layers

    @property
    def vocab_size(self: Described) -> int:
        """The number of token ids, V."""
        return self.architecture.vocab_size

    @property
    def max_positions(self: Described) -> int:
        """The longest sequence the model was made for."""
        return self.architecture.max_positions

    def spec_of(self: Described, layer: int) -> BlockSpec:
        """Return the spec of one block: window and rotary positions may differ from the others'."""
        return self.architecture.kind_of(layer).spec

    def layer_kind(self: Described, layer: int) -> int:
        """Return which of the model's kinds of blocks this is: 0, or 1 where it has another."""
        return int(layer in self.architecture.other_layers)

    def rope_tables(self: Described, positions: int, layer: int = 0) -> tuple[F32, F32]:
        """Return cos and sin of a block for positions 0 to positions - 1, float32 [positions, r / 2] each.

        Raises
        ------
        DataError
            If that is more positions than the model was made for.
        ConfigError
            If the block has no rotary positions.
        """
        kind = self.architecture.kind_of(layer)
        if kind.rope is None:
            raise ConfigError(f"{self.name} has no rotary positions")
        check_seqlen(self, positions)
        return rope_tables(kind.rope.inverse_frequencies(kind.spec.rotary), positions)

    def check_seqlen(self: Described, seqlen: int) -> None:
        """Raise DataError unless sequences of this many tokens fit the model."""
        check_seqlen(self, seqlen)


def check_seqlen(model: Described, seqlen: int) -> None:
    """Raise DataError unless sequences of this many tokens fit a model."""
    most = model.architecture.max_positions
    if not 1 <= seqlen <= most:
        raise DataError(f"{seqlen} tokens in a sequence: {model.name} takes 1 to {most}")

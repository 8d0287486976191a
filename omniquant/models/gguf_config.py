"""The fields of GGUF metadata that most architectures share, as a config.json has them."""

from __future__ import annotations

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import TensorSource
from omniquant.checkpoint.text import shown
from omniquant.models.rope import rope_from_factors

ROPE_FACTORS = "rope_freqs.weight"


class GgufMetadata:
    """Metadata whose fields begin with the architecture's name.

    Parameters
    ----------
    metadata, source
        As :meth:`omniquant.models.FamilyAdapter.config_from_gguf` gets them.
    """

    def __init__(self, metadata: Fields, source: TensorSource) -> None:
        self.fields, self.source = metadata, source
        self.prefix = metadata.text("general.architecture")

    def has(self, field: str) -> bool:
        """Tell whether a field is there."""
        return self.fields.has(f"{self.prefix}.{field}")

    def integer(self, field: str, default: int | None = None, minimum: int = 1) -> int:
        """Return an integer of at least `minimum`."""
        return self.fields.integer(f"{self.prefix}.{field}", default, minimum=minimum)

    def positive(self, field: str, default: float | None = None) -> float:
        """Return a number above zero."""
        return self.fields.positive(f"{self.prefix}.{field}", default)

    def refuse_unless(self, field: str, *allowed: object) -> None:
        """Raise UnsupportedCheckpointError unless a field is absent, 0 or one of these values."""
        name = f"{self.prefix}.{field}"
        value = self.fields.values.get(name)
        if value not in (None, 0, *allowed):
            raise UnsupportedCheckpointError(f"{self.fields.where}: {name} {shown(value)} is not supported")

    def has_tensor(self, name: str) -> bool:
        """Tell whether the file has a tensor."""
        return name in set(self.source.names())

    def head_dim(self) -> int:
        """Return the width of a head; keys and values must have the same."""
        hidden, heads = self.integer("embedding_length"), self.integer("attention.head_count")
        width = self.integer("attention.key_length", max(1, hidden // heads))
        if (found := self.integer("attention.value_length", width)) != width:
            raise UnsupportedCheckpointError(
                f"{self.fields.where}: {self.prefix}.attention.value_length is {found}, heads have {width}"
            )
        return width

    def rotary_dim(self) -> int:
        """Return the dims of a head that rotate."""
        return self.integer("rope.dimension_count", self.head_dim())

    def partial_rotation(self) -> dict[str, object]:
        """Return the share of each head that rotates, as a config.json has it."""
        return {"partial_rotary_factor": self.rotary_dim() / self.head_dim()}

    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return self.source.shape("token_embd.weight")[0]

    def tied(self) -> bool:
        """Tell whether the head is the embedding."""
        return not self.has_tensor("output.weight")

    def experts(self) -> int:
        """Return the number of experts, 0 where there is one MLP."""
        return self.fields.integer(f"{self.prefix}.expert_count", 0, minimum=0)

    def sizes(self) -> dict[str, object]:
        """Return the sizes by the names most configurations give them."""
        heads = self.integer("attention.head_count")
        return {
            "hidden_size": self.integer("embedding_length"),
            "intermediate_size": self.integer("feed_forward_length"),
            "num_hidden_layers": self.integer("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.integer("attention.head_count_kv", heads),
            "head_dim": self.head_dim(),
            "vocab_size": self.vocab_size(),
            "max_position_embeddings": self.integer("context_length"),
            "tie_word_embeddings": self.tied(),
        }

    def rope(self) -> dict[str, object]:
        """Return the ``rope_parameters`` of a config.json."""
        where, theta = self.fields.where, self.positive("rope.freq_base", 10000.0)
        self.refuse_unless("rope.scaling.type", "none", "linear")
        linear = self.fields.values.get(f"{self.prefix}.rope.scaling.type") == "linear"
        if self.has_tensor(ROPE_FACTORS):
            if linear:
                raise UnsupportedCheckpointError(
                    f"{where}: {ROPE_FACTORS} beside {self.prefix}.rope.scaling.type 'linear' "
                    "is not supported"
                )
            place = f"{self.source.file_of(ROPE_FACTORS)}: tensor {ROPE_FACTORS!r}"
            return rope_from_factors(theta, self.source.load(ROPE_FACTORS), self.rotary_dim(), place)
        if linear:
            return {
                "rope_theta": theta,
                "rope_type": "linear",
                "factor": self.positive("rope.scaling.factor"),
            }
        return {"rope_theta": theta}

"""What the adapters of decoders have in common: a table of names a layout, and where parts of tensors lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout
from omniquant.checkpoint.text import shown
from omniquant.errors import CheckpointError, ConfigError
from omniquant.models.adapter import Architecture
from omniquant.models.experts import EXPERT, gguf_refs, stored_shapes
from omniquant.models.spec import Activation, BlockSpec
from omniquant.models.tensors import TensorRef, View

# config.json's name of an activation -> ours. gelu_new and gelu_pytorch_tanh are two names of the tanh form.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class Names:
    """Where a layout keeps our parts.

    Parameters
    ----------
    block
        What the names of a block's tensors begin with; {i} is the layer.
    parts, outer
        Ours to what follows there, {e} being the expert, and to the names outside the blocks.
    """

    block: str
    parts: Mapping[str, str]
    outer: Mapping[str, str]

    def layer_of(self, key: str) -> int | None:
        """Return the block a tensor belongs to, by its name."""
        match = re.match(re.escape(self.block).replace(re.escape("{i}"), r"(\d{1,9})"), key)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class Place:
    """How a part lies in a checkpoint, where it is not simply all of a tensor.

    Parameters
    ----------
    rows
        Rows of what is stored; None: ours.
    view
        From what is stored, matrix or vector, to our rows.
    transposed
        Matrices are stored [in, out]; `view` then sees them as [out, in].
    offset
        Ours is what is stored plus this.
    """

    rows: int | None = None
    view: View | None = None
    transposed: bool = False
    offset: float = 0.0

    def ref(self, key: str, ours: tuple[int, ...]) -> TensorRef:
        """Return the reference for a tensor of ours of some shape."""
        shape = (self.rows or ours[0], *ours[1:])
        if not self.transposed or len(ours) == 1:
            return TensorRef(key, shape, self.view, ours, self.offset)
        view = self.view or (lambda rows: rows)
        return TensorRef(key, shape[::-1], lambda stored: view(stored.T), ours, self.offset, transposed=True)


def rows(begin: int, end: int, total: int) -> Place:
    """Return the place of consecutive rows of a fused tensor."""
    return Place(total, lambda stored: stored[begin:end])


LLAMA_NAMES = Names(
    "model.layers.{i}.",
    {
        "norm1": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "norm2": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    },
    {"embedding": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"},
)
GGUF_NAMES = Names(
    "blk.{i}.",
    {
        "norm1": "attn_norm",
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "o": "attn_output",
        "norm2": "ffn_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "post1": "post_attention_norm",
        "post2": "post_ffw_norm",
    },
    {
        "embedding": "token_embd",
        "final_norm": "output_norm",
        "lm_head": "output",
        "positions": "position_embd",
        "embedding_norm": "token_embd_norm",
    },
)


class Family:
    """An adapter by tables; a family fills in the rest (see :class:`omniquant.models.FamilyAdapter`)."""

    name: str
    gguf_architectures: tuple[str, ...] = ()
    gguf_activation: Activation = "silu"  # what a GGUF file of the family means
    gguf_scales_each_frequency = False  # llama.cpp reads rope_freqs.weight
    hf_names = LLAMA_NAMES
    gguf_names = GGUF_NAMES

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return how a part of a block, or outside them, lies in a checkpoint."""
        return Place()

    def names(self, layout: Layout) -> Names:
        """Return the table of a layout."""
        return self.hf_names if layout == "safetensors" else self.gguf_names

    def block_tensors(self, architecture: Architecture, layer: int, layout: Layout) -> dict[str, TensorRef]:
        """Map our names of one block to the checkpoint's tensors."""
        spec, names = architecture.spec, self.names(layout)
        norms = {part: (width,) for part, width in spec.norm_widths().items()}
        refs: dict[str, TensorRef] = {}
        for part, shape in {**norms, **stored_shapes(spec, layout)}.items():
            what, _, expert = part.partition(EXPERT)
            stem = names.block.format(i=layer) + names.parts[what].replace("{e}", expert)
            refs |= self._refs(architecture, part, shape, stem, layout)
        return refs if layout == "safetensors" else gguf_refs(refs, spec)

    def outer_tensors(self, architecture: Architecture, layout: Layout) -> dict[str, TensorRef]:
        """Map what lies outside the blocks to the checkpoint's tensors."""
        hidden, vocab = architecture.spec.hidden_size, architecture.vocab_size
        shapes: dict[str, tuple[int, ...]] = {"embedding": (vocab, hidden), "final_norm": (hidden,)}
        if architecture.embedding_norm:
            shapes["embedding_norm"] = (hidden,)
        if architecture.learned_positions:
            shapes["positions"] = (architecture.max_positions, hidden)
        if not architecture.tied_embeddings or "lm_head" in architecture.biases:
            shapes["lm_head"] = (vocab, hidden)
        refs: dict[str, TensorRef] = {}
        for part, shape in shapes.items():
            refs |= self._refs(architecture, part, shape, self.names(layout).outer[part], layout)
        if architecture.tied_embeddings:
            refs.pop("lm_head.weight", None)
        return refs

    def _refs(
        self, architecture: Architecture, part: str, shape: tuple[int, ...], stem: str, layout: Layout
    ) -> dict[str, TensorRef]:
        place = self.place(architecture, part, layout)
        refs = {f"{part}.weight": place.ref(f"{stem}.weight", shape)}
        if part.partition(EXPERT)[0] in architecture.biases:
            refs[f"{part}.bias"] = place.ref(f"{stem}.bias", shape[:1])
        return refs

    def layer_of(self, key: str, layout: Layout) -> int | None:
        """Return the block a checkpoint's tensor belongs to, by its name."""
        return self.names(layout).layer_of(key)

    @property
    def gguf_architecture(self) -> str:
        """The general.architecture it is written as; empty: llama.cpp has none for it."""
        return next(iter(self.gguf_architectures), "")

    def gguf_lacks(self, architecture: Architecture) -> tuple[str, ...]:
        """Return what llama.cpp's graph of the family does not compute: what GGUF metadata cannot say."""
        if not self.gguf_architecture:
            return (f"{self.name}, an architecture it does not know",)
        spec, rope = architecture.spec, architecture.rope
        scaled = rope is not None and not isinstance(rope.scaling, float | None)
        lacks = {
            f"{spec.activation} as activation": spec.activation != self.gguf_activation,
            f"a window of {spec.window} tokens": 0 < spec.window < architecture.max_positions,
            "a scaling of each frequency": scaled and not self.gguf_scales_each_frequency,
            **self.gguf_differs(architecture),
        }
        return tuple(what for what, is_so in lacks.items() if is_so)

    def gguf_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp's graph of this family might lack besides, and whether the model needs it."""
        return {}


def stacked_heads(spec: BlockSpec, part: str) -> Place | None:
    """Return the rows of q, k or v in a tensor that holds the three behind each other; None: another part."""
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    begin = {"q": 0, "k": query, "v": query + key}.get(part)
    if begin is None:
        return None
    return rows(begin, begin + (query if part == "q" else key), query + 2 * key)


FUSED_GGUF_NAMES = Names(
    GGUF_NAMES.block, {**GGUF_NAMES.parts, **dict.fromkeys(("q", "k", "v"), "attn_qkv")}, GGUF_NAMES.outer
)


def refuse_quantized(config: Fields) -> None:
    """Raise UnsupportedCheckpointError for a checkpoint whose weights are quantized already."""
    if config.has("quantization_config"):
        raise UnsupportedCheckpointError(
            f"{config.where}: quantization_config: the model is already quantized"
        )


def refuse_unless(config: Fields, field: str, *allowed: object) -> None:
    """Raise UnsupportedCheckpointError unless a field is absent, null or one of these values."""
    value = config.values.get(field)
    if value is not None and value not in allowed:
        raise UnsupportedCheckpointError(f"{config.where}: {field} {shown(value)} is not supported")


def activation_of(config: Fields, field: str, default: str) -> Activation:
    """Read the name of an activation; UnsupportedCheckpointError for one the core does not have."""
    name = config.text(field, default)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedCheckpointError(f"{config.where}: {field} is {shown(name)}, supported are {known}")
    return ACTIVATIONS[name]


def head_dim_of(config: Fields, hidden: str, heads: str) -> int:
    """Return the width of a head: head_dim, or the hidden size over the heads, which must then divide it."""
    hidden_size, count = config.integer(hidden), config.integer(heads)
    if not config.has("head_dim") and hidden_size % count:
        raise CheckpointError(f"{config.where}: {hidden} {hidden_size} is no multiple of {heads} {count}")
    return config.integer("head_dim", max(1, hidden_size // count))


def block_spec(config: Fields, **fields: object) -> BlockSpec:
    """Make a spec of a configuration's fields; CheckpointError names the file where they are impossible."""
    try:
        return BlockSpec(**fields)  # type: ignore[arg-type]  # its own checks say what does not fit
    except ConfigError as error:
        raise CheckpointError(f"{config.where}: {error}") from error

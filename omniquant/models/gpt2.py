"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, matrices stored [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout
from omniquant.models.adapter import Architecture
from omniquant.models.family import (
    Names,
    Place,
    activation_of,
    block_spec,
    head_dim_of,
    refuse_quantized,
    refuse_unless,
)
from omniquant.models.llama import LlamaAdapter
from omniquant.models.spec import BlockSpec


class Gpt2Adapter(LlamaAdapter):
    """GPT-2; q, k and v lie in one tensor."""

    name = "gpt2"
    classes: ClassVar[Mapping[str, str]] = {"gpt2": "GPT2LMHeadModel"}
    gguf_architectures: tuple[str, ...] = ()
    hf_names = Names(
        "transformer.h.{i}.",
        {
            "norm1": "ln_1",
            **dict.fromkeys(("q", "k", "v"), "attn.c_attn"),
            "o": "attn.c_proj",
            "norm2": "ln_2",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        {
            "embedding": "transformer.wte",
            "positions": "transformer.wpe",
            "final_norm": "transformer.ln_f",
            "lm_head": "lm_head",
        },
    )

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json."""
        refuse_quantized(config)
        refuse_unless(config, "scale_attn_weights", True)
        refuse_unless(config, "scale_attn_by_inverse_layer_idx", False)
        return Architecture(
            spec=self.spec(config),
            num_layers=config.integer("n_layer"),
            vocab_size=config.integer("vocab_size"),
            max_positions=config.integer("n_positions", 1024),
            tied_embeddings=config.boolean("tie_word_embeddings", True),
            rope=None,
            biases=frozenset(("norm1", "norm2", "final_norm", "q", "k", "v", "o", "up", "down")),
            learned_positions=True,
        )

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of a config.json."""
        hidden, heads = config.integer("n_embd"), config.integer("n_head")
        return block_spec(
            config,
            hidden_size=hidden,
            ffn_size=config.integer("n_inner") if config.has("n_inner") else 4 * hidden,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim_of(config, "n_embd", "n_head"),
            norm="layer",
            norm_eps=config.positive("layer_norm_epsilon", 1e-5),
            rope=False,
            mlp="plain",
            activation=activation_of(config, "activation_function", "gelu_new"),
        )

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return where a part lies: every linear transposed, q, k and v beside each other."""
        hidden = architecture.spec.hidden_size
        which = {"q": 0, "k": 1, "v": 2}.get(part)
        if which is not None:
            begin = which * hidden
            return Place(3 * hidden, lambda stored: stored[begin : begin + hidden], transposed=True)
        return Place(transposed=part in ("o", "up", "down"))

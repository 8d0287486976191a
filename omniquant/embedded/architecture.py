"""Shape of the embedded model: the numbers of its ``config.json``, with no dependency."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Architecture:
    """A LLaMA decoder with grouped-query attention and tied embeddings.

    Sizes are multiples of 128 where group-wise quantization splits them, so that groups of 32, 64 and
    128 input channels fit without remainder.
    """

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 5
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 16
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    bos_token_id: int = 0
    eos_token_id: int = 1

    def to_config(self) -> dict[str, object]:
        """Return the contents of a Hugging Face ``config.json`` for this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "rope_scaling": None,
            "pretraining_tp": 1,
            "initializer_range": 0.02,
            "use_cache": True,
            "torch_dtype": "float32",
        }

"""LLaMA decoder in torch for training and checking the embedded model (development only).

Submodules are named as in Hugging Face checkpoints, so ``state_dict()`` needs no renaming on export.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniquant.embedded.architecture import Architecture

# Called on tensors that a quantized model would quantize; the identity in full precision.
ActivationHook = Callable[[Tensor], Tensor]


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def rope_tables(arch: Architecture) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of all rotation angles, each (positions, head_dim)."""
    exponents = torch.arange(0, arch.head_dim, 2, dtype=torch.float32) / arch.head_dim
    angles = torch.outer(torch.arange(arch.max_position_embeddings).float(), arch.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(tensor: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embeddings in the rotate-half convention of Hugging Face LLaMA."""
    first, second = tensor.chunk(2, dim=-1)
    return tensor * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    """Root-mean-square normalization with a gain per channel."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize (..., size) over the last axis."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention; several query heads share one key/value head."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.hook: ActivationHook = _unchanged
        query_width = arch.num_attention_heads * arch.head_dim
        key_width = arch.num_key_value_heads * arch.head_dim
        self.q_proj = nn.Linear(arch.hidden_size, query_width, bias=False)
        self.k_proj = nn.Linear(arch.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(arch.hidden_size, key_width, bias=False)
        self.o_proj = nn.Linear(query_width, arch.hidden_size, bias=False)

    def _heads(self, tensor: Tensor) -> Tensor:
        batch, length, _ = tensor.shape
        return tensor.view(batch, length, -1, self.arch.head_dim).transpose(1, 2)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within (batch, length, hidden); the tables hold one row per position."""
        hidden = self.hook(hidden)
        query = self.hook(rotate(self._heads(self.q_proj(hidden)), cos, sin))
        key = self.hook(rotate(self._heads(self.k_proj(hidden)), cos, sin))
        value = self.hook(self._heads(self.v_proj(hidden)))
        repeats = self.arch.num_attention_heads // self.arch.num_key_value_heads
        mixed = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(repeats, dim=1),
            value.repeat_interleave(repeats, dim=1),
            is_causal=True,
        )
        output: Tensor = self.o_proj(self.hook(mixed.transpose(1, 2).flatten(2)))
        return output


class FeedForward(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.hook: ActivationHook = _unchanged
        self.gate_proj = nn.Linear(arch.hidden_size, arch.intermediate_size, bias=False)
        self.up_proj = nn.Linear(arch.hidden_size, arch.intermediate_size, bias=False)
        self.down_proj = nn.Linear(arch.intermediate_size, arch.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform (..., hidden) position by position."""
        hidden = self.hook(hidden)
        gated = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        output: Tensor = self.down_proj(self.hook(gated))
        return output


class Block(nn.Module):
    """One decoder layer with pre-normalization."""

    def __init__(self, arch: Architecture, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.input_layernorm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        self.self_attn = Attention(arch)
        self.post_attention_layernorm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        self.mlp = FeedForward(arch)

    def _drop(self, tensor: Tensor) -> Tensor:
        return functional.dropout(tensor, self.dropout, self.training)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add the outputs of both sublayers to the residual stream (batch, length, hidden)."""
        hidden = hidden + self._drop(self.self_attn(self.input_layernorm(hidden), cos, sin))
        return hidden + self._drop(self.mlp(self.post_attention_layernorm(hidden)))


class Decoder(nn.Module):
    """Embedding, decoder layers and final norm (the ``model.`` part of a checkpoint)."""

    def __init__(self, arch: Architecture, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.hidden_size)
        self.layers = nn.ModuleList(Block(arch, dropout) for _ in range(arch.num_hidden_layers))
        self.norm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        cos, sin = rope_tables(arch)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return normalized hidden states (batch, length, hidden) for token ids (batch, length)."""
        length = tokens.shape[1]
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden, self.cos[:length], self.sin[:length])  # type: ignore[index]
        normalized: Tensor = self.norm(hidden)
        return normalized


class CausalLM(nn.Module):
    """Language model whose output layer is the transposed embedding.

    Parameters
    ----------
    arch
        Shape of the model.
    dropout
        Probability with which an element of a residual branch is dropped in training.
    """

    def __init__(self, arch: Architecture, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = Decoder(arch, dropout)
        self._initialize(arch)

    def _initialize(self, arch: Architecture) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.5 * parameter.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    # Keeps the variance of the residual stream independent of depth.
                    scale *= (2 * arch.num_hidden_layers) ** -0.5
                nn.init.normal_(parameter, std=scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (batch, length, vocabulary) for token ids (batch, length)."""
        return functional.linear(self.model(tokens), self.model.embed_tokens.weight)

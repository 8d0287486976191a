"""A LLaMA forward pass in plain NumPy and double precision: the reference the C core is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rotations import fixed_rotation

from omniquant.models import BlockSpec, Model

F64 = npt.NDArray[np.float64]
Weights = dict[str, F64]


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight)


def linear(x: F64, weights: Weights, name: str) -> F64:
    """Return x W^T + b; W is [out, in]."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def rotate(x: F64, cos: F64, sin: F64) -> F64:
    """Rotate the pairs (i, i + d/2) of each head; x is [N, T, heads, d], cos and sin are [T, d/2]."""
    first, second = np.split(x, 2, axis=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)


def softmax(scores: F64) -> F64:
    """Return the softmax over the last axis."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def attention(x: F64, weights: Weights, spec: BlockSpec, cos: F64, sin: F64) -> F64:
    """Causal grouped-query attention; x is [N, T, H]."""
    n, t, _ = x.shape
    q = rotate(linear(x, weights, "q").reshape(n, t, spec.num_heads, spec.head_dim), cos, sin)
    k = rotate(linear(x, weights, "k").reshape(n, t, spec.num_kv_heads, spec.head_dim), cos, sin)
    v = linear(x, weights, "v").reshape(n, t, spec.num_kv_heads, spec.head_dim)
    if spec.rotate_qk:
        q, k = q @ fixed_rotation(spec.head_dim), k @ fixed_rotation(spec.head_dim)
    group = spec.num_heads // spec.num_kv_heads
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("nthd,nshd->nhts", q, k) / np.sqrt(spec.head_dim)
    scores = np.where(np.tril(np.ones((t, t), bool)), scores, -np.inf)
    context = np.einsum("nhts,nshd->nthd", softmax(scores), v)
    if spec.rotate_heads:
        context = np.einsum("nthd,hg->ntgd", context, fixed_rotation(spec.num_heads))
    return linear(context.reshape(n, t, -1), weights, "o")


def mlp(x: F64, weights: Weights, spec: BlockSpec) -> F64:
    """Return down(silu(gate(x)) * up(x))."""
    gate = linear(x, weights, "gate")
    u = gate / (1 + np.exp(-gate)) * linear(x, weights, "up")
    return linear(u @ fixed_rotation(spec.ffn_size) if spec.rotate_down else u, weights, "down")


def block(x: F64, weights: Weights, spec: BlockSpec, cos: F64, sin: F64) -> F64:
    """One transformer block; x is [N, T, H]."""
    x = x + attention(rms_norm(x, weights["norm1.weight"], spec.norm_eps), weights, spec, cos, sin)
    return x + mlp(rms_norm(x, weights["norm2.weight"], spec.norm_eps), weights, spec)


def forward(model: Model, tokens: npt.NDArray[np.integer[Any]]) -> F64:
    """Return the logits [N, T, V] of tokens [N, T]."""
    cos, sin = (table.astype(np.float64) for table in model.rope_tables(tokens.shape[1]))
    x = model.embed(tokens).astype(np.float64)
    for layer in range(model.num_layers):
        weights = {name: value.astype(np.float64) for name, value in model.block(layer).items()}
        x = block(x, weights, model.spec, cos, sin)
    x = rms_norm(x, model.ends().final_norm["weight"].astype(np.float64), model.spec.norm_eps)
    return x @ model.lm_head().astype(np.float64).T


def window_losses(model: Model, tokens: npt.NDArray[np.integer[Any]]) -> F64:
    """Return each window's mean cross entropy of its T - 1 targets: [N]."""
    logits = forward(model, tokens)[:, :-1]
    peak = logits.max(axis=-1)
    log_normalizer = peak + np.log(np.exp(logits - peak[..., None]).sum(axis=-1))
    target = np.take_along_axis(logits, tokens[:, 1:, None].astype(np.int64), axis=-1)[..., 0]
    return np.asarray((log_normalizer - target).mean(axis=-1))

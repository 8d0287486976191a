"""Function-preserving rescale that gives a small model the outlier channels of a large one.

Large language models have a few activation channels many times larger than the rest, and it is these
that make round-to-nearest quantization of activations fail. A model of a million parameters has hardly
any, so a demonstration on it would show little. This module moves scale between adjacent operations
without changing what they compute together:

* a gain of a norm is multiplied by ``f`` and the matching input column of the linear layers behind it
  (q/k/v, or gate/up) divided by ``f``;
* an output row of the value projection is multiplied by ``f`` and the matching columns of the output
  projection divided by ``f``; under grouped-query attention these are one column per query head that
  shares the value head, because attention mixes tokens, never channels.

Every ``f`` is a power of two. Multiplying by it changes only exponents, so the products, and hence the
logits, are equal bit for bit (barring underflow), and float32 weights lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from omniquant.embedded.architecture import Architecture

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class OutlierPlan:
    """How many outlier channels of which size to create.

    Attributes
    ----------
    norm_factors
        One factor per outlier channel of both norms of every layer.
    value_factors
        One factor per outlier channel of the value projection of every layer.
    """

    norm_factors: tuple[int, ...]
    value_factors: tuple[int, ...]

    def __post_init__(self) -> None:
        for factor in self.norm_factors + self.value_factors:
            if factor < 1 or factor & (factor - 1):
                raise ValueError(f"factor {factor} is not a power of two: the rescale would not be exact")


# In order of severity; training takes the first that harms round-to-nearest W4A4 enough.
PLANS = (
    OutlierPlan((), ()),
    OutlierPlan((8, 8, 8), (2, 2)),
    OutlierPlan((8, 8, 8, 8), (4, 2)),
    OutlierPlan((8, 8, 8, 8, 8, 8), (4, 4)),
    OutlierPlan((16, 8, 8), (4, 2)),
    OutlierPlan((16, 16, 8, 8), (4, 4)),
    OutlierPlan((16, 16, 16, 8), (4, 4, 4)),
    OutlierPlan((32, 16, 16, 8), (4, 4, 4)),
    OutlierPlan((32, 32, 16, 16), (8, 4, 4)),
    OutlierPlan((32, 32, 32, 16, 16), (8, 8, 4)),
    OutlierPlan((32, 32, 32, 32, 32, 32), (8, 8, 8)),
)


def scale_norm_channel(
    weights: Weights, norm: str, linears: tuple[str, ...], channel: int, factor: int
) -> None:
    """Multiply one gain of a norm and divide the matching input column of the layers behind it.

    Parameters
    ----------
    weights
        Tensors by name; changed in place.
    norm
        Name of the norm's gain vector.
    linears
        Names of the weight matrices (out, in) that read the norm's output.
    channel
        Index of the channel.
    factor
        Power of two.
    """
    weights[norm][channel] *= factor
    for name in linears:
        weights[name][:, channel] /= factor


def scale_value_channel(weights: Weights, prefix: str, arch: Architecture, channel: int, factor: int) -> None:
    """Multiply one row of the value projection and divide the output columns that read it.

    Parameters
    ----------
    weights
        Tensors by name; changed in place.
    prefix
        Name of the attention block, such as ``model.layers.0.self_attn``.
    arch
        Shape of the model.
    channel
        Row of the value projection: key/value head times ``head_dim`` plus offset.
    factor
        Power of two.
    """
    weights[f"{prefix}.v_proj.weight"][channel] *= factor
    shared_by = arch.num_attention_heads // arch.num_key_value_heads
    head, offset = divmod(channel, arch.head_dim)
    for query_head in range(head * shared_by, (head + 1) * shared_by):
        weights[f"{prefix}.o_proj.weight"][:, query_head * arch.head_dim + offset] /= factor


def _norm_sites(layer: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    prefix = f"model.layers.{layer}"
    attention = tuple(f"{prefix}.self_attn.{name}_proj.weight" for name in "qkv")
    yield f"{prefix}.input_layernorm.weight", attention
    feed_forward = (f"{prefix}.mlp.gate_proj.weight", f"{prefix}.mlp.up_proj.weight")
    yield f"{prefix}.post_attention_layernorm.weight", feed_forward


def _spread_over_heads(arch: Architecture, offsets: NDArray[np.int64]) -> list[int]:
    # One outlier per head in turn: two in the same head would partly hide one another.
    heads = cycle(range(arch.num_key_value_heads))
    return [head * arch.head_dim + int(offset) for head, offset in zip(heads, offsets, strict=False)]


def add_outliers(weights: Weights, arch: Architecture, plan: OutlierPlan, seed: int = 0) -> Weights:
    """Return rescaled copies of a model's weights that compute the same function.

    The norms of all layers share their outlier channels, as the residual stream of large models does;
    the value channels differ from layer to layer.

    Parameters
    ----------
    weights
        Tensors by Hugging Face name, float32.
    arch
        Shape of the model.
    plan
        Number and size of the outliers.
    seed
        Seed of the choice of channels.

    Returns
    -------
    dict of str to ndarray
        New tensors; the given ones are left alone.
    """
    result = {name: tensor.copy() for name, tensor in weights.items()}
    generator = np.random.default_rng(seed)
    channels = generator.choice(arch.hidden_size, size=len(plan.norm_factors), replace=False)
    for layer in range(arch.num_hidden_layers):
        for norm, linears in _norm_sites(layer):
            for channel, factor in zip(channels, plan.norm_factors, strict=True):
                scale_norm_channel(result, norm, linears, int(channel), factor)
        offsets = generator.integers(arch.head_dim, size=len(plan.value_factors))
        rows = _spread_over_heads(arch, offsets)
        for row, factor in zip(rows, plan.value_factors, strict=True):
            scale_value_channel(result, f"model.layers.{layer}.self_attn", arch, row, factor)
    return result

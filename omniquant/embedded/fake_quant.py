"""Round-to-nearest W4A4 simulated in floating point, to measure the embedded model (development only).

Weights are quantized per output channel, activations dynamically per token (per token and head for the
rotated query, the rotated key and the value), both asymmetric min-max with zero always in range.
Embedding, output layer, norms and softmax stay in floating point. This is a yardstick for choosing the
outliers of the embedded model, independent of the package's C core.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniquant.embedded.torch_llama import Attention, CausalLM, FeedForward


def fake_quantize(tensor: Tensor, bits: int = 4) -> Tensor:
    """Quantize and dequantize a tensor with one asymmetric min-max range per row of its last axis.

    Parameters
    ----------
    tensor
        Values to round.
    bits
        Width of the integer grid.

    Returns
    -------
    Tensor
        The rounded values in floating point; zero is represented exactly.
    """
    levels = 2**bits - 1
    low = tensor.amin(dim=-1, keepdim=True).clamp(max=0)
    high = tensor.amax(dim=-1, keepdim=True).clamp(min=0)
    step = ((high - low) / levels).clamp(min=1e-12)
    zero_point = torch.round(-low / step)
    codes = (torch.round(tensor / step) + zero_point).clamp(0, levels)
    restored: Tensor = (codes - zero_point) * step
    return restored


def round_to_nearest_w4a4(model: CausalLM) -> CausalLM:
    """Return a copy of a model that computes with 4-bit weights and activations."""
    quantized = copy.deepcopy(model)
    for module in quantized.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = fake_quantize(module.weight.data)
        elif isinstance(module, (Attention, FeedForward)):
            module.hook = fake_quantize
    return quantized


@torch.no_grad()
def perplexity(model: CausalLM, tokens: Tensor, window: int, batch: int = 8) -> float:
    """Measure the perplexity of a model over non-overlapping windows.

    Parameters
    ----------
    model
        Model to measure; it is switched to evaluation mode.
    tokens
        Token ids, one-dimensional; an incomplete last window is dropped.
    window
        Tokens per window. The first token of a window is given, not predicted.
    batch
        Windows per forward pass.

    Returns
    -------
    float
        Exponential of the mean negative log-likelihood per predicted token.
    """
    model.eval()
    windows = tokens[: len(tokens) // window * window].view(-1, window)
    total = 0.0
    for chunk in torch.split(windows, batch):
        logits = model(chunk)[:, :-1].flatten(0, 1)
        total += functional.cross_entropy(logits, chunk[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / (windows.shape[0] * (window - 1)))

"""What each linear costs at each number of bits, measured on calibration tokens in one pass over the model.

Of block l, with one linear rounded to nearest at b bits and everything else in float, the error of its output

    e(l, i, b) = mean over tokens of |y' - y|^2 / |y|^2

tells linears and bits apart: relative to a token's own energy, because the next norm divides by it. What an
error there does to the model is measured once a block: all its linears at one number of bits, the rest of the
model behind it in float, and the Kullback-Leibler divergence D(l) of the next-token distribution at the end.
Both grow with the square of a small error, so a linear costs

    D(l) e(l, i, b) / E(l),   E(l) the error of the block's output in that run.

The perturbed streams of all blocks travel together, so every block is read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.checkpoint.finite import check_finite
from omniquant.config import QuantConfig
from omniquant.forward import F32, I32, ForwardModel, Progress, Steps, Weights, run_block
from omniquant.models.spec import quantized_shapes

_TOKENS = 1024  # measured on so many at most: whole windows, the first ones
_PREDICTIONS = 256  # distributions compared, spread evenly over the tokens
_ROWS = 64  # whose logits exist at a time

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sensitivity:
    """Costs of the linears of a model.

    Parameters
    ----------
    names : tuple of str
        "layers.0.q" and so on, [n].
    costs : ndarray of float64 [n, m]
        Nats of divergence, as estimated; they add up while errors are small.
    """

    names: tuple[str, ...]
    costs: F64


def measure(
    model: ForwardModel,
    windows: I32,
    scheme: QuantConfig,
    bits: Sequence[int],
    reference: int,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure every linear at every number of bits.

    Parameters
    ----------
    model : Model
    windows : ndarray of int32 [N, T]
        Calibration tokens; the first 1,024 are used, or the first window.
    scheme : QuantConfig
        Groups and symmetry of the weights.
    bits : sequence of int
        Increasing.
    reference : int
        Bits at which whole blocks are run through the rest of the model.
    threads : int
    progress : callable, optional
        Called with (blocks done, blocks).

    Returns
    -------
    Sensitivity
    """
    tokens = windows[: max(1, _TOKENS // windows.shape[1])]
    shapes = quantized_shapes(model.spec)
    full = model.embed(tokens)
    perturbed: list[F32] = []  # one stream a block so far
    local = np.empty((model.num_layers, len(shapes), len(bits)))
    whole = np.empty(model.num_layers)
    steps = Steps(progress, model.num_layers)
    for index in range(model.num_layers):
        weights = model.block(index)
        for name, values in weights.items():
            check_finite(f"block {index}: {name}", values)
        y = run_block(model, index, weights, full, threads=threads)
        error = partial(_error, model, index, weights, scheme, full, y, threads)
        for i, name in enumerate(shapes):
            for j, b in enumerate(bits):
                local[index, i, j] = error({name: b})[0]
        perturbed = [run_block(model, index, weights, x, threads=threads) for x in perturbed]
        whole[index], moved = error(dict.fromkeys(shapes, reference))
        perturbed.append(moved)
        full = y
        steps()
    divergence = _divergences(model, full, perturbed, threads)
    factor = np.divide(divergence, whole, out=np.zeros_like(whole), where=whole > 0)
    costs = (local * factor[:, None, None]).reshape(-1, len(bits))
    names = tuple(f"layers.{index}.{name}" for index in range(model.num_layers) for name in shapes)
    return Sensitivity(names, costs)


def rounded(weights: Weights, bits: Mapping[str, int], scheme: QuantConfig) -> Weights:
    """Return a block's weights with some linears rounded to nearest, by name and bits."""
    changed: Weights = {}
    for name, b in bits.items():
        linear = scheme.with_weights(b).uniform()
        if not linear.quantized:
            continue
        group = linear.group_size or 0
        codes, scale, zero = _core.quantize(
            weights[f"{name}.weight"], bits=b, group_size=group, symmetric=linear.symmetric
        )
        changed[f"{name}.weight"] = _core.dequantize(codes, scale, zero, group_size=group)
    return weights | changed


def _error(
    model: ForwardModel,
    index: int,
    weights: Weights,
    scheme: QuantConfig,
    x: F32,
    y: F32,
    threads: int,
    bits: Mapping[str, int],
) -> tuple[float, F32]:
    """Return the relative error of a block's output y under rounded weights, and that output."""
    moved = run_block(model, index, rounded(weights, bits, scheme), x, threads=threads)
    energy = np.einsum("nth,nth->nt", y, y, dtype=np.float64)
    difference = moved - y
    error = np.einsum("nth,nth->nt", difference, difference, dtype=np.float64)
    return float((error / np.maximum(energy, np.finfo(np.float32).tiny)).mean()), moved


def _divergences(model: ForwardModel, full: F32, perturbed: list[F32], threads: int) -> F64:
    """Return the mean divergence of each perturbed stream's predictions from those of the full one."""
    head, ends = model.lm_head(), model.ends()

    def logits(x: F32, rows: npt.NDArray[np.int64]) -> F32:
        return ends.logits(x.reshape(-1, x.shape[-1])[rows], head, threads=threads)

    count = full.shape[0] * full.shape[1]
    rows = np.unique(np.linspace(0, count - 1, min(count, _PREDICTIONS)).round().astype(np.int64))
    found = np.zeros(len(perturbed))
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        original = logits(full, part)
        targets = np.zeros(len(part), np.int32)  # any: their nats are not asked for
        for index, stream in enumerate(perturbed):
            kl, *_ = _core.divergence(original, logits(stream, part), targets, threads=threads)
            found[index] += kl.sum()
    return np.maximum(found / len(rows), 0.0)  # sums of float32: of equal ones a little less than nothing

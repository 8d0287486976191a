"""The integer linear in NumPy: int64 sums, and float32 in the order the kernels promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import omniquant

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
SEGMENT = 128  # inputs of a group that have a step of their own in fixed point


def group_slices(width: int, group: int) -> list[slice]:
    return [slice(begin, min(width, begin + group)) for begin in range(0, width, group)]


def random_layer(rng, n, k, bits, group, symmetric):
    """Codes [n, k], scales and zero points [n, G] (None where symmetric)."""
    groups = len(group_slices(k, group))
    codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    scales = rng.uniform(0.5, 2, (n, groups)).astype(np.float32)
    zero_points = None if symmetric else rng.integers(0, 1 << bits, (n, groups)).astype(np.uint8)
    return codes, scales, zero_points


RUN = 32768  # products of two bytes that surely fit 32 bits together: longer groups are added up in runs


def runs(values: I64) -> list[slice]:
    return group_slices(values.shape[1], RUN)


def centred_weights(codes, zero_points, bits, group) -> list[I64]:
    """w - z of each group."""
    out = []
    for g, part in enumerate(group_slices(codes.shape[1], group)):
        zero = np.full((len(codes), 1), 1 << (bits - 1)) if zero_points is None else zero_points[:, g : g + 1]
        out.append(codes[:, part].astype(np.int64) - zero.astype(np.int64))
    return out


def quantized_linear(x, layer, bits, group, activation_bits, symmetric_activations=False, bias=None) -> F32:
    """Activations at 2 to 8 bits."""
    codes, scales, zero_points = layer
    a, a_scale, a_zero = omniquant.quantize(x, bits=activation_bits, symmetric=symmetric_activations)
    centred = a.astype(np.int64) - a_zero.astype(np.int64)
    y = np.zeros((len(x), len(codes)), np.float32)
    weights = centred_weights(codes, zero_points, bits, group)
    for g, part in enumerate(group_slices(codes.shape[1], group)):
        for run in runs(weights[g]):
            y += (centred[:, part][:, run] @ weights[g][:, run].T).astype(np.float32) * scales[:, g]
    y *= a_scale
    return y if bias is None else y + bias


def fixed_point(x: F32, planes: int) -> tuple[I64, F32]:
    """x [rows, segment] as whole multiples of a step a row."""
    most = np.abs(x).max(axis=1, keepdims=True)
    step = np.maximum(most / np.float32(127 * 256 ** (planes - 1)), np.finfo(np.float32).tiny)
    return np.rint(x * (1 / step)).astype(np.int64), step


def digits(q: I64, planes: int) -> list[I64]:
    """Balanced digits of base 256, high ones first."""
    if planes == 1:
        return [q]
    low = (q + 128) % 256 - 128
    return [*digits((q - low) // 256, planes - 1), low]


def fixed_linear(x, layer, bits, group, planes, bias=None) -> F32:
    """Activations in fixed point, at 16 bits (two planes) or 24."""
    codes, scales, zero_points = layer
    y = np.zeros((len(x), len(codes)), np.float32)
    weights = centred_weights(codes, zero_points, bits, group)
    for g, part in enumerate(group_slices(codes.shape[1], group)):
        for segment in group_slices(weights[g].shape[1], SEGMENT):
            q, step = fixed_point(x[:, part][:, segment], planes)
            sums = [d @ weights[g][:, segment].T for d in digits(q, planes)]
            y += joined(sums) * scales[:, g] * step
    return y if bias is None else y + bias


def joined(sums: list[I64]) -> F32:
    """Two planes are added up exactly, three rounded from the left."""
    if len(sums) == 2:
        return (sums[0] * 256 + sums[1]).astype(np.float32)
    high, middle, low = (s.astype(np.float32) for s in sums)
    return (high * np.float32(256) + middle) * np.float32(256) + low

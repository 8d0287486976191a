"""Packed linears: every kernel's bits, against integers in NumPy and against fake quantization."""

from __future__ import annotations

import numpy as np
import pytest
from integer_linear import float_linear, quantized_linear, random_layer

from omniquant.kernels import Linear, available

KERNELS = available()
BITS = (2, 3, 4, 8)


def linear(layer, kernel, **options):
    codes, scales, zero_points = layer
    return Linear(codes, scales, zero_points, kernel=kernel, threads=1, **options)


def random_case(rng, bits, symmetric):
    """A shape of up to 67 each way and a group size, ragged more often than not."""
    m, n, k = rng.integers(1, 68, 3)
    group = int(rng.choice([k, rng.integers(1, k + 1), min(k, 32)]))
    x = (rng.standard_normal((m, k)) * rng.uniform(0.1, 10) + rng.uniform(-1, 1)).astype(np.float32)
    return x, random_layer(rng, n, k, bits, group, symmetric), group


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_integer_sums_are_exact(bits, symmetric, kernel):
    """Were one sum of integers off by one, the float behind it would have other bits."""
    rng = np.random.default_rng(bits)
    for _ in range(60):
        x, layer, group = random_case(rng, bits, symmetric)
        for name, width in (("int8", 8), ("int4", 4)):
            for around_zero in (False, True):
                q = linear(layer, kernel, bits=bits, group_size=group, activations=name,
                           symmetric_activations=around_zero)  # fmt: skip
                expected = quantized_linear(x, layer, bits, group, width, around_zero)
                np.testing.assert_array_equal(q(x), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_float_activations_have_the_promised_bits(bits, symmetric, kernel):
    rng = np.random.default_rng(bits)
    for _ in range(60):
        x, layer, group = random_case(rng, bits, symmetric)
        q = linear(layer, kernel, bits=bits, group_size=group, activations="float")
        np.testing.assert_array_equal(q(x), float_linear(x, layer, bits, group))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("k", "group"), [(300, 129), (999, 999), (700, 256), (40000, 40000), (70000, 33000)])
def test_long_rows(k, group, kernel):
    """Several segments a group, and groups whose sum takes more than one run of 32 bits."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((2, k)).astype(np.float32)
    for bits in BITS:
        layer = random_layer(rng, 3, k, bits, group, symmetric=False)
        y = linear(layer, kernel, bits=bits, group_size=group)(x)
        np.testing.assert_array_equal(y, quantized_linear(x, layer, bits, group, 8))
        y = linear(layer, kernel, bits=bits, group_size=group, activations="float")(x)
        np.testing.assert_array_equal(y, float_linear(x, layer, bits, group))

"""Packed linears: every kernel's bits, against integers in NumPy and against fake quantization."""

from __future__ import annotations

import numpy as np
import pytest
from integer_linear import fixed_linear, quantized_linear, random_layer

import omniquant
from omniquant.kernels import Linear, available

KERNELS = available()
BITS = (2, 3, 4, 8)
PLANES = {"int16": 2, "float": 3}  # of activations in fixed point


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
def test_fixed_point_has_the_promised_bits(bits, symmetric, kernel):
    rng = np.random.default_rng(bits)
    for _ in range(60):
        x, layer, group = random_case(rng, bits, symmetric)
        for activations, planes in PLANES.items():
            q = linear(layer, kernel, bits=bits, group_size=group, activations=activations)
            np.testing.assert_array_equal(q(x), fixed_linear(x, layer, bits, group, planes))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", BITS)
def test_every_tail(bits, kernel):
    """Each of the three sizes from 1 to 67, the others at random."""
    rng = np.random.default_rng(bits + 100)
    for size in range(1, 68):
        for axis in range(3):
            m, n, k = (size if i == axis else int(rng.integers(1, 68)) for i in range(3))
            group = int(rng.integers(1, k + 1))
            layer = random_layer(rng, n, k, bits, group, symmetric=False)
            x = rng.standard_normal((m, k)).astype(np.float32)
            y = linear(layer, kernel, bits=bits, group_size=group)(x)
            np.testing.assert_array_equal(y, quantized_linear(x, layer, bits, group, 8))


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
        for activations, planes in PLANES.items():
            y = linear(layer, kernel, bits=bits, group_size=group, activations=activations)(x)
            np.testing.assert_array_equal(y, fixed_linear(x, layer, bits, group, planes))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [5, 6, 7])
def test_bits_between(bits, kernel):
    rng = np.random.default_rng(bits)
    layer = random_layer(rng, 20, 50, bits, 16, symmetric=False)
    x = rng.standard_normal((3, 50)).astype(np.float32)
    y = linear(layer, kernel, bits=bits, group_size=16)(x)
    np.testing.assert_array_equal(y, quantized_linear(x, layer, bits, 16, 8))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("activations", ["int8", "int4", "int16", "float"])
def test_bias(activations, kernel):
    rng = np.random.default_rng(0)
    layer, x = (
        random_layer(rng, 70, 40, 4, 8, symmetric=False),
        rng.standard_normal((9, 40)).astype(np.float32),
    )
    bias = rng.standard_normal(70).astype(np.float32)
    options = {"bits": 4, "group_size": 8, "activations": activations}
    plain = linear(layer, kernel, **options)(x)
    np.testing.assert_array_equal(linear(layer, kernel, bias=bias, **options)(x), plain + bias)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", BITS)
def test_extremes_of_all_codes(bits, kernel):
    """The largest sums there are: no 16 or 32 bits overflow on the way."""
    top = (1 << bits) - 1
    for k in (128, 4096, 32768):
        ones = np.ones((7, k), np.float32)
        ones[:, ::2] *= np.array([1, -1, 1, -1, 1, -1, 1], np.float32)[:, None]
        ones[4:] *= -1
        for code, zero in ((top, 0), (0, top), (top, top)):
            codes = np.full((17, k), code, np.uint8)
            layer = codes, np.ones((17, 1), np.float32), np.full((17, 1), zero, np.uint8)
            y = linear(layer, kernel, bits=bits)(ones)
            np.testing.assert_array_equal(y, quantized_linear(ones, layer, bits, k, 8))
            for activations, planes in PLANES.items():
                y = linear(layer, kernel, bits=bits, activations=activations)(ones)
                np.testing.assert_array_equal(y, fixed_linear(ones, layer, bits, k, planes))


@pytest.mark.parametrize("size", [1e-42, 1e-38, 1.0, 1e30, 1.6e38])
def test_fixed_point_of_any_size(size):
    rng = np.random.default_rng(0)
    codes, scales, zero_points = random_layer(rng, 20, 64, 4, 16, symmetric=False)
    layer = codes, scales * np.float32(min(1, 1e30 / size)), zero_points
    x = np.clip(rng.standard_normal((5, 64)) * size, -1.7e38, 1.7e38).astype(np.float32)
    x[0] = 0
    x[1, :16] = 0
    for activations, planes in PLANES.items():
        expected = fixed_linear(x, layer, 4, 16, planes)
        for kernel in KERNELS:
            y = linear(layer, kernel, bits=4, group_size=16, activations=activations)(x)
            np.testing.assert_array_equal(y, expected)


def exact(x, w):
    """x Wᵀ in double, and what its rounding is measured by: |x| |w|, the largest it can be."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    return x @ w.T, np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [None, 128, 32])
@pytest.mark.parametrize("bits", BITS)
def test_equals_the_fake_quantized_product(bits, group, symmetric):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((90, 300)).astype(np.float32)
    x = rng.standard_normal((40, 300)).astype(np.float32) + np.float32(0.3)
    x[:, 7] *= 300  # an outlier channel, as models have them
    options = {"bits": bits, "group_size": group or 0, "symmetric": symmetric}
    w_hat = omniquant.fake_quantize(w, **options)
    codes, scales, zero_points = omniquant.quantize(w, **options)
    for activations, width in (("int8", 8), ("int4", 4), ("int16", 16), ("float", 32)):
        x_hat = x if width >= 16 else omniquant.fake_quantize(x, bits=width)
        zeros = None if symmetric else zero_points
        y = Linear(codes, scales, zeros, bits=bits, group_size=group, activations=activations)(x)
        expected, size = exact(x_hat, w_hat)
        assert (np.abs(y - expected) <= (1e-4 if width == 16 else 1e-6) * size).all()


def test_float_activations_are_as_exact_as_a_product_in_single_precision():
    """Even beside an element 50,000 times the others, as SmolLM2's down projection has one.

    In single precision, summed from left to right: what a BLAS makes of it depends on how many sums it keeps
    apart on this processor.
    """
    rng = np.random.default_rng(0)
    w = rng.standard_normal((200, 1536)).astype(np.float32)
    x = rng.standard_normal((30, 1536)).astype(np.float32)
    x[:, 100] = 50_000
    codes, scales, zero_points = omniquant.quantize(w, bits=4)
    expected, _ = exact(x, omniquant.fake_quantize(w, bits=4))
    single = np.zeros((30, 200), np.float32)
    for column, weights in zip(x.T, omniquant.fake_quantize(w, bits=4).T, strict=True):
        single += column[:, None] * weights
    y = Linear(codes, scales, zero_points, bits=4, activations="float")(x)
    assert np.abs(y - expected).max() <= 2 * np.abs(single - expected).max()


def test_16_bits_are_finer_than_halves():
    """Of activations as models have them, one in a segment 20 times the others."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((200, 1536)).astype(np.float32)
    x = rng.standard_normal((30, 1536)).astype(np.float32)
    x[:, 5::128] *= 20
    codes, scales, zero_points = omniquant.quantize(w, bits=4)
    w_hat = omniquant.fake_quantize(w, bits=4)
    expected, _ = exact(x, w_hat)
    halves, _ = exact(x.astype(np.float16), w_hat)
    y = Linear(codes, scales, zero_points, bits=4, activations="int16")(x)
    assert np.sqrt(np.mean((y - expected) ** 2)) < np.sqrt(np.mean((halves - expected) ** 2)) / 2


def test_rows_in_blocks():
    """More rows than are quantized at a time are the rows one by one."""
    rng = np.random.default_rng(0)
    layer, x = (
        random_layer(rng, 30, 40, 4, 40, symmetric=False),
        rng.standard_normal((1100, 40)).astype(np.float32),
    )
    q = linear(layer, None, bits=4)
    np.testing.assert_array_equal(q(x), np.concatenate([q(row) for row in x[:, None]]))


def test_memory_stays_near_the_packed_size():
    for bits in (2, 3, 4, 8):
        for group in (64, 128, 4096):
            layer = random_layer(np.random.default_rng(0), 64, 4096, bits, group, symmetric=False)
            file = 64 * 4096 * bits / 8 + 64 * (4096 // group) * 5
            assert linear(layer, None, bits=bits, group_size=group).nbytes <= 1.1 * file

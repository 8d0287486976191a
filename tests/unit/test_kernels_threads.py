"""Packed linears under threads: the same bits, and no hanging after a fork."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import omniquant
from omniquant.kernels import Linear

ACTIVATIONS = ("int8", "int4", "int16", "float")


def layers(threads, activations="int8"):
    w = np.random.default_rng(0).standard_normal((700, 512)).astype(np.float32)
    codes, scales, zero_points = omniquant.quantize(w, bits=4, group_size=64)
    return Linear(
        codes, scales, zero_points, bits=4, group_size=64, activations=activations, threads=threads
    )  # fmt: skip


def inputs(rows):
    return np.random.default_rng(1).standard_normal((rows, 512)).astype(np.float32)


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_the_same_bits_at_any_number_of_threads(rows, activations):
    x = inputs(rows)
    expected = layers(1, activations)(x)
    for threads in (2, 3, 4, 16):
        np.testing.assert_array_equal(layers(threads, activations)(x), expected)


@pytest.mark.parametrize("inner", [1, 2])
def test_many_threads_call_one_layer(inner):
    layer, x = layers(inner), inputs(3)
    expected = layer(x).tobytes()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: [layer(x).tobytes() for _ in range(125)], range(64)))
    assert all(result == expected for part in results for result in part)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_hang():
    layer, x = layers(2), inputs(100)
    expected = layer(x).tobytes()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if layer(x).tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")
def test_nothing_leaks():
    """A leak shows in every stretch; the allocator's own growth, once in a while, in some."""
    x, sizes = inputs(5), []
    for i in range(601):
        layer = layers(1)
        for _ in range(5):
            layer(x)
        if i % 100 == 0:
            sizes.append(resident())
    assert min(np.diff(sizes[1:])) < 256 << 10

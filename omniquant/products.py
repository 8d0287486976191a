"""The matrix products of a calibration step: their shapes, their kinds, and their time when run bare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from omniquant import _core
from omniquant.blockfile import linear_shapes
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.config.core import core_qk_map
from omniquant.models.experts import EXPERT, stored_shapes
from omniquant.models.spec import BlockSpec

_TILE = 128  # query rows of a head that attention takes at a time, against the keys they see


@dataclass(frozen=True)
class Product:
    """One product of a step: C [m, n] = op(A) op(B), k deep; integers of a_bits and b_bits.

    There are `count` alike, one after the other on all threads, or, `apart`, each on one thread.
    """

    kind: str
    m: int
    n: int
    k: int
    transpose_a: bool = False
    transpose_b: bool = False
    a_bits: int = 8
    b_bits: int = 8
    of: Literal["linear", "attention", "map"] = "linear"
    count: int = 1
    apart: bool = False

    @property
    def operations(self) -> float:
        """Multiplications and additions of all of them."""
        return 2.0 * self.m * self.n * self.k * self.count

    def milliseconds(self, repeats: int, threads: int, *, own: bool = False) -> float:
        """Return the time of all of them, by the median time of one: bare, or as a step multiplies here."""
        seconds = _core.time_product(
            self.kind, self.m, self.n, self.k,
            transpose_a=self.transpose_a, transpose_b=self.transpose_b,
            a_bits=self.a_bits, b_bits=self.b_bits, own=own,
            repeats=repeats, threads=1 if self.apart else threads,
        )  # fmt: skip
        rounds = -(-self.count // threads) if self.apart else self.count
        return 1e3 * float(np.median(seconds)) * rounds


def step_products(
    spec: BlockSpec, scheme: QuantConfig, options: CalibrationOptions, tokens: int
) -> list[Product]:
    """Return the products of a step of one window.

    Those of the linears, y = x W^T, dx = dy W, dW = dy^T x; of attention, forward and backward; and of dense
    maps with the weights and activations they map. Not among them are those inside inverses, and those of
    Kronecker maps, small ones row by row.

    Parameters
    ----------
    spec : BlockSpec
    scheme : QuantConfig
    options : CalibrationOptions
        With products and gradients settled (``with_products``).
    tokens : int
        Of the window.
    """
    return [
        *_linear_products(spec, scheme, options, tokens),
        *_attention_products(spec, options, tokens),
        *_map_products(spec, options, tokens),
    ]


def gram_products(spec: BlockSpec, options: CalibrationOptions, tokens: int) -> list[Product]:
    """Return X^T X of every input of a block's linears: what a searched start reads, half of each."""
    if options.start != "search":
        return []
    shapes = linear_shapes(spec)
    widths = [shapes[name][1] for name in ("q", "o", "up", "down") if name in shapes]
    return [Product("float32", width, width, tokens, transpose_a=True) for width in widths]


def _floats(options: CalibrationOptions) -> str:
    """Return what multiplies operands that are no codes."""
    return "bfloat16" if options.products == "bfloat16" else "float32"


# ---- linears ---------------------------------------------------------------------


def _linear_products(
    spec: BlockSpec, scheme: QuantConfig, options: CalibrationOptions, tokens: int
) -> list[Product]:
    """Return y = x W^T, dx = dy W and dW = dy^T x of each, as the core takes them."""
    backward = _floats(options)
    # Nothing before the first norm is learned but its own map, a diagonal one by the weights' gradients.
    by_weights = options.norm_map == "diagonal" and scheme.weight_only and options.input_map == "none"
    unread = ("q", "k", "v") if by_weights or options.norm_map == "none" else ()
    products = []
    for name, (rows, out, width) in _products_of(spec, tokens):
        exact = options.products != "float32" and scheme.a_bits <= 8 and scheme.groups(width) == 1
        fits = scheme.w_bits <= 7 or (scheme.w_bits == 8 and scheme.w_symmetric)
        forward = Product(backward, rows, out, width, transpose_b=True)
        if exact and fits:
            forward = replace(forward, kind="integer", a_bits=scheme.a_bits, b_bits=scheme.w_bits)
        products.append(forward)
        of_weight, of_input = _backward_products(scheme, options.gradients, backward, rows, out, width)
        products.append(of_weight)
        if name not in unread:
            products.append(of_input)
        # The blocks a loss looks through learn nothing: forward, and back to what they read.
        behind = [Product(backward, rows, out, width, transpose_b=True), Product(backward, rows, width, out)]
        products += behind * options.look_ahead
    return products


def _backward_products(
    scheme: QuantConfig, gradients: str, kind: str, rows: int, out: int, width: int
) -> tuple[Product, Product]:
    """Return dW = dy^T x and dx = dy W of one linear; bytes meet the codes of x and of W, or 8 bits."""
    of_weight = Product(kind, out, width, rows, transpose_a=True)
    of_input = Product(kind, rows, width, out)
    if gradients != "int8" or not scheme.quantizes_weights:
        return of_weight, of_input
    w_bits = scheme.w_bits if scheme.groups(width) == 1 else 8
    return (
        replace(of_weight, kind="integer", a_bits=8, b_bits=min(scheme.a_bits, 8)),
        replace(of_input, kind="integer", a_bits=8, b_bits=w_bits),
    )


def _products_of(spec: BlockSpec, tokens: int) -> list[tuple[str, tuple[int, int, int]]]:
    """Return (rows of its input, out, in) of every linear; experts one by one, with equal shares."""
    shared = max(1, -(-tokens * spec.experts_per_token // max(1, spec.num_experts)))
    return [
        (name, (shared if EXPERT in name else tokens, out, width))
        for name, (out, width) in stored_shapes(spec).items()
    ]


# ---- attention -------------------------------------------------------------------


def _attention_products(spec: BlockSpec, options: CalibrationOptions, tokens: int) -> Iterator[Product]:
    """Yield Q K^T and P V, and on the way back both scores again and what leads to Q, K and V."""
    depth = spec.head_dim
    passes = 1 + options.look_ahead
    alike = Product(_floats(options), 0, 0, 0, of="attention", count=spec.num_heads * passes, apart=True)
    for begin in range(0, tokens, _TILE):
        rows = min(_TILE, tokens - begin)
        keys = begin + rows
        scores = replace(alike, m=rows, n=keys, k=depth, transpose_b=True)
        mixed = replace(alike, m=rows, n=depth, k=keys)
        collected = replace(alike, m=keys, n=depth, k=rows, transpose_a=True)
        yield from (scores, mixed)
        yield from (scores, scores, mixed, collected, collected)


# ---- maps ------------------------------------------------------------------------


def _map_products(spec: BlockSpec, options: CalibrationOptions, tokens: int) -> Iterator[Product]:
    """Yield those of dense maps, all of floats: with rows and columns of weights, and with norms' outputs."""
    shapes, depth = linear_shapes(spec), spec.head_dim
    online = options.norm_map == "online"
    of_rows = {"v": options.vo_map == "affine"}
    of_rows["q"] = of_rows["k"] = core_qk_map(options, spec.rope, spec.head_norms) in ("full", "rotation")
    for name in (name for name, mapped in of_rows.items() if mapped):
        out, width = shapes[name]
        heads = Product("float32", depth, width, depth, of="map", count=out // depth)
        yield from (heads, replace(heads, n=depth, k=width, transpose_b=True))
        if online:
            yield replace(heads, transpose_a=True)
    if options.vo_map == "affine":
        yield from _columns_of(shapes["o"][0], depth, spec.num_heads)
    for names in (("q", "k", "v"), ("gate", "up")) if online else ():
        for name in names:
            if name in shapes:
                yield from _columns_of(shapes[name][0], spec.hidden_size, 1)
        width = spec.hidden_size
        of_input = Product("float32", tokens, width, width, of="map")
        of_inverse = Product("float32", width, width, tokens, transpose_a=True, of="map")
        yield from (of_input, of_inverse, replace(of_input, transpose_b=True))


def _columns_of(rows: int, width: int, blocks: int) -> Iterator[Product]:
    """Yield W A^T of each block of columns, and dA = dW^T W."""
    yield Product("float32", rows, width, width, transpose_b=True, of="map", count=blocks)
    yield Product("float32", width, width, rows, transpose_a=True, of="map", count=blocks)

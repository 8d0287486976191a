"""What a calibration will cost on this machine: a few steps of one block, beside their products run bare."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from omniquant import _core
from omniquant.blockfile import linear_shapes
from omniquant.config import CalibrationOptions, QuantConfig, core_options
from omniquant.config.preset import SAMPLES, SEQLEN
from omniquant.errors import ConfigError
from omniquant.forward import F32, Weights
from omniquant.memory import peak_rss_mib
from omniquant.models.experts import EXPERT, stored_shapes
from omniquant.models.rope import Rope, rope_tables
from omniquant.models.rotated import Rotation
from omniquant.models.spec import BlockSpec
from omniquant.threads import resolve_threads

_WINDOWS = 2
_OTHER_PASSES = 2  # over all windows beside the training: the full-precision stream, the quantized one
_LOSSES = 3  # of rounding, start and end
_PASSES_TO_BEGIN = 3  # of those over a window before the first step: the full-precision stream, two losses


@dataclass(frozen=True)
class Product:
    """One product of a step: C [m, n] = op(A) op(B), k deep; integers of a_bits and b_bits."""

    kind: str
    m: int
    n: int
    k: int
    transpose_a: bool = False
    transpose_b: bool = False
    a_bits: int = 8
    b_bits: int = 8

    def milliseconds(self, threads: int, repeats: int) -> float:
        """Return the median time of the bare product."""
        return 1e3 * float(np.median(_core.time_product(**asdict(self), repeats=repeats, threads=threads)))


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes
    ----------
    ms_per_step : float
        Median milliseconds of an optimiser step of one window, forward and backward.
    gemm_ms_alone : float
        The products of the linears of such a step, run bare at the same kinds.
    ms_to_begin : float
        Milliseconds of a block on two windows until its first step is done: passes, statistics, a search.
    ms_per_forward : float
        Milliseconds of a forward pass of one window, its floats in parts where products are of bfloat16.
    ms_per_gram : float
        Milliseconds of one window's Gram matrices, which a searched start reads; 0 without one.
    precision : str
        The kind of products: float32, integer or bfloat16 (see CalibrationOptions.products).
    gradients : str
        The kind of those of the way back, float or int8 (see CalibrationOptions.gradients).
    projected_seconds : float
        The whole model: layers x (what comes before the first step, samples x epochs steps, the passes around
        them).
    scheme, method : str
    layers, samples, seqlen, epochs : int
        Of the calibration that is projected.
    threads : int
    peak_rss_mib : float
    """

    ms_per_step: float
    gemm_ms_alone: float
    ms_to_begin: float
    ms_per_forward: float
    ms_per_gram: float
    precision: str
    gradients: str
    projected_seconds: float
    scheme: str
    method: str
    layers: int
    samples: int
    seqlen: int
    epochs: int
    threads: int
    peak_rss_mib: float


def bench(
    spec: BlockSpec,
    scheme: QuantConfig | str,
    method: str = "omniquant",
    *,
    seqlen: int = SEQLEN,
    samples: int = SAMPLES,
    layers: int = 32,
    steps: int = 5,
    threads: int | None = None,
    online: bool = True,
    **options: Any,
) -> BenchResult:
    """Time calibration steps of one block of random weights and project them to a model.

    Parameters
    ----------
    spec : BlockSpec
        The block's shape; its values are random, which costs what real ones cost.
    scheme : QuantConfig or str
    method : {"omniquant", "affinequant", "auto"}
    seqlen, samples, layers : int
        Of the calibration to project to; windows are by default those of ``omniquant quantize``.
    steps : int
        Steps to time, after one to warm up.
    threads : int, optional
        None: all processors this process may use.
    online : bool
        Whether the model's blocks permit rotations and maps at run time, which "auto" then may choose.
    **options
        Other fields of :class:`CalibrationOptions`, such as epochs; and preset.

    Returns
    -------
    BenchResult

    Raises
    ------
    ConfigError
        If a size is not positive, or scheme, method and options do not go together.
    """
    config = QuantConfig.parse(scheme) if isinstance(scheme, str) else scheme
    sizes = {"seqlen": seqlen, "samples": samples, "layers": layers, "steps": steps}
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}, expected at least 1")
    chosen = CalibrationOptions.for_method(
        method, config, online=online, search=not spec.num_experts, samples=samples, **options
    )
    if not chosen.trains:
        raise ConfigError(f"method {method!r} with {chosen.epochs} epochs takes no steps to time")
    fastest = _core.runtime_info()
    chosen = chosen.with_products(config, fastest["products"], fastest["gradients"])
    workers = resolve_threads(threads)
    rotation = Rotation.of(chosen, config)
    spec = spec if rotation is None else rotation.spec(spec)
    block = _Block(spec, seqlen)
    begin, step = block.step_milliseconds(config, chosen, steps, workers)
    forward = block.forward_milliseconds(workers, in_parts=chosen.products == "bfloat16")
    products = step_products(spec, config, chosen, seqlen)
    gram = sum(p.milliseconds(workers, 3) for p in gram_products(spec, chosen, seqlen)) / 2  # half of each
    other = _OTHER_PASSES + chosen.aug_loss + (chosen.look_ahead > 0)
    passes = samples * other + _LOSSES * len(_core.judges(samples, seqlen))
    begun = min(_WINDOWS, samples)
    a_block = (
        begin
        + (samples * chosen.epochs - 1) * step
        + (passes - _PASSES_TO_BEGIN * begun) * forward
        + (samples - begun) * gram
    )
    return BenchResult(
        ms_per_step=step,
        gemm_ms_alone=sum(product.milliseconds(workers, repeats=max(3, steps)) for product in products),
        ms_to_begin=begin,
        ms_per_forward=forward,
        ms_per_gram=gram,
        precision=chosen.products,
        gradients=chosen.gradients,
        projected_seconds=layers * a_block / 1e3,
        scheme=str(config),
        method=method,
        layers=layers,
        samples=samples,
        seqlen=seqlen,
        epochs=chosen.epochs,
        threads=workers,
        peak_rss_mib=peak_rss_mib(),
    )


def gram_products(spec: BlockSpec, options: CalibrationOptions, tokens: int) -> list[Product]:
    """Return X^T X of every input of a block's linears: what a searched start reads, half of each."""
    if options.start != "search":
        return []
    shapes = linear_shapes(spec)
    widths = [shapes[name][1] for name in ("q", "o", "up", "down") if name in shapes]
    return [Product("float32", width, width, tokens, transpose_a=True) for width in widths]


def step_products(
    spec: BlockSpec, scheme: QuantConfig, options: CalibrationOptions, tokens: int
) -> list[Product]:
    """Return the products of a step's linears, y = x W^T, dx = dy W, dW = dy^T x, as the core takes them."""
    backward = "bfloat16" if options.products == "bfloat16" else "float32"
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


class _Block:
    """A block of random weights and two windows of random activations."""

    def __init__(self, spec: BlockSpec, tokens: int) -> None:
        random = np.random.default_rng(0)

        def normal(*shape: int) -> F32:
            values: F32 = random.standard_normal(shape, np.float32)
            return values / np.float32(np.sqrt(shape[-1]))

        self.spec = spec
        self.weights: Weights = {
            f"{name}.weight": normal(*shape) for name, shape in linear_shapes(spec).items()
        }
        for norm in ("norm1", "norm2"):
            self.weights[f"{norm}.weight"] = np.ones(spec.hidden_size, np.float32)
            if spec.norm == "layer":
                self.weights[f"{norm}.bias"] = np.zeros(spec.hidden_size, np.float32)
        self.x = random.standard_normal((_WINDOWS, tokens, spec.hidden_size), np.float32)
        self.rope = rope_tables(Rope().inverse_frequencies(spec.head_dim), tokens)

    def forward_milliseconds(self, threads: int, *, in_parts: bool) -> float:
        """Return the median time of one window's forward pass."""
        stamps = [time.perf_counter()]
        for _ in range(3):
            self._forward(threads, in_parts=in_parts)
            stamps.append(time.perf_counter())
        return 1e3 * float(np.median(np.diff(stamps))) / _WINDOWS

    def step_milliseconds(
        self, scheme: QuantConfig, options: CalibrationOptions, steps: int, threads: int
    ) -> tuple[float, float]:
        """Return the time until the first step of one window is done, and the median one of the others."""
        targets = self._forward(threads)
        followers = [(self.spec.to_core(), self.weights, *self.rope)] * options.look_ahead
        epochs = -(-(steps + 2) // _WINDOWS)
        short = replace(options, epochs=epochs, batch_size=1)
        stamps = [time.perf_counter()]
        _core.calibrate_block(
            self.spec.to_core(),
            self.weights,
            self.x,
            self.x,
            targets,
            targets if options.aug_loss else None,
            *self.rope,
            core_options(scheme, short, block=0, **self.spec.map_facts()),
            on_step=lambda *_: stamps.append(time.perf_counter()),
            goals=targets if followers else None,
            followers=followers or None,
            threads=threads,
        )
        begin, *others = 1e3 * np.diff(stamps)
        return float(begin), float(np.median(others[-steps:]))

    def _forward(self, threads: int, *, in_parts: bool = False) -> F32:
        out: F32 = _core.block_forward(
            self.spec.to_core(), self.weights, self.x, *self.rope, in_parts=in_parts, threads=threads
        )
        return out

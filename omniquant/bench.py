"""What a calibration will cost on this machine: a few steps of one block, beside their products run bare."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omniquant import _core
from omniquant.blockfile import linear_shapes
from omniquant.config import CalibrationOptions, QuantConfig, core_options
from omniquant.config.preset import SAMPLES, SEQLEN
from omniquant.errors import ConfigError
from omniquant.forward import F32, Weights
from omniquant.memory import peak_rss_mib
from omniquant.models.rope import Rope, rope_tables
from omniquant.models.rotated import Rotation
from omniquant.models.spec import BlockSpec
from omniquant.products import Product, gram_products, step_products
from omniquant.threads import resolve_threads

_WINDOWS = 2
_OTHER_PASSES = 2  # over all windows beside the training: the full-precision stream, the quantized one
_LOSSES = 3  # of rounding, start and end
_PASSES_TO_BEGIN = 3  # of those over a window before the first step: the full-precision stream, two losses


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes
    ----------
    ms_per_step : float
        Median milliseconds of an optimiser step of one window, forward and backward.
    gemm_ms_alone : float
        The products of such a step (see :func:`omniquant.products.step_products`), run bare at the same
        kinds, by oneDNN where it has them.
    linears_ms_alone : float
        Those of its linears among them: without attention's and the maps'.
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
    linears_ms_alone: float
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
    alone = _alone(step_products(spec, config, chosen, seqlen), max(3, steps), workers)
    gram = sum(p.milliseconds(3, workers) for p in gram_products(spec, chosen, seqlen)) / 2  # half of each
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
        gemm_ms_alone=sum(alone.values()),
        linears_ms_alone=alone["linear"],
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


def _alone(products: Sequence[Product], repeats: int, threads: int) -> dict[str, float]:
    """Return the milliseconds of bare products by what they are products of."""
    times: dict[str, float] = dict.fromkeys((each.of for each in products), 0.0)
    for each in products:
        times[each.of] += each.milliseconds(repeats, threads)
    return times


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

"""Calibration of a single linear layer of any network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.config import CalibrationOptions, QuantConfig, core_options
from omniquant.errors import ConfigError
from omniquant.reprs import one_line_repr

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
InputMap = Literal["none", "diagonal", "affine"]

__all__ = ["LinearResult", "calibrate_linear"]

# The core calls the map of a linear's input by where it would sit in a block: behind the norm.
_CORE_MAP = {"none": "none", "diagonal": "diagonal", "affine": "online"}
_FOLDED = ("codes", "scale", "zero_point", "bias", "map", "map_inverse", "shift", "margins")


@dataclass(frozen=True, repr=False)
class LinearResult:
    """A calibrated linear layer: ``y = Q_a((x - shift) A^-1) W^T + bias``, W from the codes.

    Attributes
    ----------
    config : QuantConfig
    codes : ndarray of uint8 [M, K] or None
        None where the scheme leaves weights in floating point.
    scale, zero_point : ndarray of float32, uint8 [M, G] or None
    weight : ndarray of float32 [M, K]
        What the codes stand for, already multiplied by the map; the float weight where there are none.
    bias : ndarray of float32 [M] or None
    map, map_inverse : ndarray of float32 [K] or [K, K], or None
        A and A^-1: a diagonal or a full matrix. The multiply by A^-1 is left to do at run time.
    shift : ndarray of float32 [K] or None
    margins : ndarray of float64 [K] or None
        Dominance margin of every row of a full map.
    learnables : dict of ndarray
        "weight.lwc_max", "weight.lwc_min", "input.map", "input.shift": those that were trained.
    loss_rtn, loss_initial, loss_final : float
        Mean squared error against the original layer: rounded to nearest, before and after training.
    trace : ndarray of float64 [epochs]
        Mean training loss of each epoch.
    kept : {"final", "best", "initial", "rtn"}
        What the result holds; never worse on the calibration data than its start or rounding to nearest.
    steps, rows_projected, steps_rejected : int
    min_margin, max_condition, varah_bound : float or None
        None without a full map.
    """

    config: QuantConfig
    codes: U8 | None
    scale: F32 | None
    zero_point: U8 | None
    weight: F32
    bias: F32 | None
    map: F32 | None
    map_inverse: F32 | None
    shift: F32 | None
    margins: F64 | None
    learnables: dict[str, F32]
    loss_rtn: float
    loss_initial: float
    loss_final: float
    trace: F64
    kept: str
    steps: int
    rows_projected: int
    steps_rejected: int
    min_margin: float | None
    max_condition: float | None
    varah_bound: float | None

    @one_line_repr
    def __repr__(self) -> str:
        rows, columns = self.weight.shape
        losses = f"loss {self.loss_initial:.3g} -> {self.loss_final:.3g}"
        return f"{rows} x {columns}, {self.config}, {losses}, kept {self.kept}"

    def __call__(self, x: npt.ArrayLike) -> F32:
        """Return the quantized layer's output [..., M] for inputs [..., K]."""
        moved = np.asarray(x, np.float32)
        if self.shift is not None:
            moved = moved - self.shift
        if self.map_inverse is not None:
            moved = moved * self.map_inverse if self.map_inverse.ndim == 1 else moved @ self.map_inverse
        if self.config.a_bits <= 8:
            moved = _core.fake_quantize(
                moved,
                bits=self.config.a_bits,
                symmetric=self.config.a_symmetric,
                full_range=self.config.a_full_range,
            )
        y: F32 = moved @ self.weight.T
        return y if self.bias is None else y + self.bias


def calibrate_linear(
    weight: npt.ArrayLike,
    x: npt.ArrayLike,
    config: QuantConfig | str,
    *,
    method: str = "omniquant",
    bias: npt.ArrayLike | None = None,
    input_map: InputMap | None = None,
    batch_size: int = 128,
    on_step: Callable[[int, int, float, float], object] | None = None,
    threads: int = 1,
    **options: Any,
) -> LinearResult:
    """Quantize one linear layer so that it keeps giving what it gave: ``x @ weight.T + bias``.

    Minimises ``mean (Q_a((X - shift) A^-1) Q_w(W A^T)^T + W shift - X W^T)^2`` over the clipping of the
    weights (OmniQuant, arXiv 2308.13137, eq. 2) and the map A of the input: channel-wise (eq. 3) or affine
    (AffineQuant, arXiv 2403.12544, eq. 4), kept strictly diagonally dominant.

    Parameters
    ----------
    weight : array_like [M, K]
    x : array_like [..., K]
        Inputs of the layer, as many rows as there are: its calibration data.
    config : QuantConfig or str
        Bits and groups of weights and input, such as "W4A4" or "W3A16g64".
    method : {"rtn", "smoothquant", "omniquant", "affinequant"}
    bias : array_like [M], optional
    input_map : {"none", "diagonal", "affine"}, optional
        None: the method's own; "none" for weight-only OmniQuant, "affine" for AffineQuant, else "diagonal".
    batch_size : int
        Rows a step.
    on_step : callable, optional
        Called as ``on_step(epoch, step, loss, min_margin)``; an exception it raises ends the calibration.
    threads : int
    **options
        Other fields of :class:`~omniquant.config.CalibrationOptions`: epochs, rounding, lr_lwc, lr_let,
        shift, dominance, margin, stability, parametrization, schedule, shuffle, best_iterate, seed, alpha.

    Returns
    -------
    LinearResult

    Raises
    ------
    ConfigError
        If scheme, method and options do not go together.
    ValueError, TypeError
        If shapes or dtypes do not fit; NotFiniteError (a ValueError) names the row and column of a NaN.
    NotDominantError
        With ``dominance="raise"``.
    """
    scheme = QuantConfig.parse(config) if isinstance(config, str) else config
    if input_map is None:
        input_map = _default_map(method, scheme)
    elif input_map not in _CORE_MAP:
        raise ConfigError(f"input_map {input_map!r} is not one of {', '.join(_CORE_MAP)}")
    options |= {"norm_map": _CORE_MAP[input_map], "batch_size": batch_size}
    chosen = CalibrationOptions.for_method(method, scheme, online=False, **options)
    if chosen.start == "search":
        raise ConfigError("start 'search' is for blocks; a single layer starts as the papers do")
    if chosen.rounding == "gptq":
        raise ConfigError("rounding 'gptq' is for blocks; a single layer has nearest and learned")
    asked = core_options(scheme, chosen, block=0, rope=False)
    result = _core.calibrate_linear(weight, x, bias, asked, on_step=on_step, threads=threads)
    return _as_result(scheme, result)


def _default_map(method: str, scheme: QuantConfig) -> InputMap:
    if method == "affinequant":
        return "affine"
    if method == "smoothquant" or (method == "omniquant" and scheme.a_bits <= 8):
        return "diagonal"
    return "none"


def _as_result(scheme: QuantConfig, result: dict[str, Any]) -> LinearResult:
    folded: dict[str, Any] = result.pop("folded")
    result.pop("worst_row")
    weight = folded.get("weight")
    if weight is None:
        weight = _core.dequantize(
            folded["codes"], folded["scale"], folded["zero_point"], group_size=scheme.group_size or 0
        )
    fields: dict[str, Any] = {name: folded.get(name) for name in _FOLDED}
    return LinearResult(config=scheme, weight=weight, **fields, **result)

"""Figures of a calibration; they need matplotlib (``pip install "omniquant-c[plots]"``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.checkpoint.text import one_line
from omniquant.config.method import METHODS
from omniquant.errors import DataError, UnsupportedError
from omniquant.models.spec import quantized_shapes
from omniquant.progress import MapSnapshots
from omniquant.quantized import CalibrationResult

Figure = Any  # matplotlib carries no types

_OPENING_PANELS = 5
_NARROWEST = 6.0  # inches that the longest title takes


def _new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """Make a figure without pyplot: no window system, no state that outlives the call."""
    try:
        from matplotlib.figure import Figure as MatplotlibFigure
    except ImportError:
        raise UnsupportedError('plots need matplotlib: pip install "omniquant-c[plots]"') from None
    figure = MatplotlibFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def plot_losses(results: Sequence[CalibrationResult]) -> Figure:
    """Draw the loss of each block, and of each epoch within it, one column a scheme.

    A block's loss is drawn relative to that of plain rounding of the same block on the same inputs: absolute
    losses of methods with and without the auxiliary term are not comparable.

    Parameters
    ----------
    results : sequence of CalibrationResult
        Of one model and one set of tokens.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UnsupportedError
        Without matplotlib.
    """
    schemes = list(dict.fromkeys(str(result.scheme) for result in results))
    figure, axes = _new_figure(2, len(schemes), 4.2 * len(schemes), 6.4)
    for column, scheme in enumerate(schemes):
        of_scheme = [result for result in results if str(result.scheme) == scheme]
        _draw_blocks(axes[0, column], scheme, of_scheme)
        _draw_epochs(axes[1, column], of_scheme[-1])
    return figure


def _draw_blocks(axis: Any, scheme: str, results: Sequence[CalibrationResult]) -> None:
    for result in results:
        reports = result.blocks
        relative = [r.loss_final / r.loss_rtn if r.loss_rtn else 1.0 for r in reports]
        number = METHODS.index(result.method)  # a method looks the same in every panel
        style = {"color": f"C{number}", "marker": "osD^vP"[number], "linestyle": ("-", "--", ":")[number % 3]}
        axis.plot([r.index for r in reports], relative, label=result.method, **style)
    axis.set(title=scheme, xlabel="block", ylabel="loss relative to plain rounding")
    axis.set_ylim(0, 1.4 * axis.get_ylim()[1])  # room for the legend above the lines
    axis.legend(loc="upper left", ncols=2)


def _draw_epochs(axis: Any, result: CalibrationResult) -> None:
    for report in result.blocks:
        if report.trace:
            axis.plot(
                range(1, len(report.trace) + 1),
                np.divide(report.trace, report.trace[0]),
                label=f"{report.index}",
            )
    title = f"{result.scheme} {result.method}, training"
    axis.set(title=title, xlabel="epoch", ylabel="loss relative to the first epoch")
    if axis.lines:
        axis.legend(title="block", fontsize="small")


def plot_opening(result: CalibrationResult, snapshots: MapSnapshots, head: int = 0) -> Figure:
    """Draw how the gradual mask opens, and the map behind it as it was after each of these epochs.

    Parameters
    ----------
    result : CalibrationResult
        By affinequant, with a full map where the snapshots were taken.
    snapshots : MapSnapshots
        Which was among the callbacks of that calibration.
    head : int
        Which key/value head.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UnsupportedError
        Without matplotlib, or where the snapshots hold no full map.
    """
    maps, epochs = snapshots.maps, result.options.epochs
    where = f"{snapshots.site} map of block {snapshots.block}"
    if len(maps) != epochs or not maps or maps[0].ndim != 3 or maps[0].shape[1] != maps[0].shape[2]:
        raise UnsupportedError(f"{result.method} {result.scheme}: no snapshots of a full affine {where}")
    chosen = sorted({round(i * (epochs - 1) / (_OPENING_PANELS - 1)) for i in range(_OPENING_PANELS)})
    figure, axes = _new_figure(2, len(chosen), max(_NARROWEST, 2.3 * len(chosen)), 5.0)
    matrices = {epoch: _matrix_after(maps[epoch][head], result, epoch) for epoch in chosen}
    limit = max(float(np.abs(matrix - np.diag(np.diag(matrix))).max()) for matrix in matrices.values()) or 1.0
    for column, epoch in enumerate(chosen):
        mask = _core.gradual_mask(maps[0].shape[1], epoch, epochs, result.options.stability)
        greys = {"vmin": 0, "vmax": 1, "cmap": "Greys"}
        masks = _draw_matrix(axes[0, column], mask, f"mask, epoch {epoch + 1}", greys)
        colours = {"vmin": -limit, "vmax": limit, "cmap": "RdBu"}
        maps_drawn = _draw_matrix(axes[1, column], matrices[epoch], f"map after epoch {epoch + 1}", colours)
    figure.colorbar(masks, ax=axes[0, -1], label="factor of an entry")
    figure.colorbar(maps_drawn, ax=axes[1, -1], label="entry (diagonal: near 1)")
    axes[0, 0].set_ylabel("row")
    axes[1, 0].set_ylabel("row")
    axes[1, 0].set_xlabel("column")
    figure.suptitle(f"{result.scheme} {result.method}: {where}, head {head}")
    return figure


def _matrix_after(
    parameters: npt.NDArray[Any], result: CalibrationResult, epoch: int
) -> npt.NDArray[np.float64]:
    """Return one map as it was after an epoch [d, d]: its parameters of then under the mask of then."""
    options, width = result.options, parameters.shape[0]
    band = (width - 1) * epoch // (options.epochs - 1) if options.epochs > 1 else width - 1
    matrix, _ = _core.affine_forward(
        parameters[None], band=band, stability=options.stability, parametrization=options.parametrization
    )
    return np.asarray(matrix[0], np.float64)


def _draw_matrix(axis: Any, values: npt.NDArray[Any], title: str, colours: Mapping[str, Any]) -> Any:
    image = axis.imshow(values, interpolation="nearest", **colours)
    axis.set_title(title, fontsize="small")
    axis.set_xticks([])
    axis.set_yticks([])
    return image


def plot_allocation(result: CalibrationResult) -> Figure:
    """Draw what each linear costs at the fewest bits and the bits it was given, one column a block.

    Parameters
    ----------
    result : CalibrationResult
        Calibrated with `average_bits`.

    Returns
    -------
    matplotlib.figure.Figure
        Costs are estimated nats of divergence at the end of the model, as powers of ten; linears with schemes
        wished for by hand have none.

    Raises
    ------
    UnsupportedError
        Without matplotlib, or where no bits were chosen.
    """
    allocation, scheme = result.header.allocation, result.scheme
    if allocation is None:
        raise UnsupportedError(f"{result.method} {scheme}: no bits were chosen, there was no --average-bits")
    layers, names = range(result.header.num_layers), list(quantized_shapes(result.architecture.spec))
    found = {name: values[0] for name, values in allocation.costs.items()}
    costs = np.array([[found.get(f"layers.{layer}.{name}", 0.0) for layer in layers] for name in names])
    bits = np.array([[scheme.block(layer)[name].bits for layer in layers] for name in names])
    figure, axes = _new_figure(2, 1, max(_NARROWEST, 2.6 + 0.36 * len(layers)), 5.6)
    logarithms = np.ma.log10(np.ma.masked_less_equal(costs, 0))
    fewest = f"divergence at {allocation.bits[0]} bits, log10 of nats"
    image = _draw_linears(axes[0, 0], logarithms, names, "viridis", fewest)
    figure.colorbar(image, ax=axes[0, 0])
    axes[0, 0].set_xlabel("block")
    title = f"bits chosen, {allocation.average_bits:g} on average"
    image = _draw_linears(axes[1, 0], bits, names, "YlGnBu", title)
    figure.colorbar(image, ax=axes[1, 0], ticks=np.unique(bits))
    middle = (int(bits.min()) + int(bits.max())) / 2
    for (row, column), value in np.ndenumerate(bits):
        colour = "white" if value > middle else "black"
        axes[1, 0].text(column, row, str(value), ha="center", va="center", fontsize="small", color=colour)
    axes[1, 0].set_xlabel("block")
    return figure


def _draw_linears(axis: Any, values: npt.NDArray[Any], names: Sequence[str], colours: str, title: str) -> Any:
    """Draw a value a linear [names, blocks]."""
    image = axis.imshow(values, cmap=colours, aspect="auto", interpolation="nearest")
    axis.set_title(title, fontsize="medium")
    axis.set_yticks(range(len(names)), names)
    return image


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file.

    Raises
    ------
    DataError
        If it cannot be written there.
    """
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:  # ValueError: an ending that names no format
        raise DataError(f"{path}: cannot write the figure: {one_line(error)}") from error
    return path

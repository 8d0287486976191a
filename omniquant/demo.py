"""The demo: the model inside this package, quantized by every method, in one table and two figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omniquant.calibration import calibrate
from omniquant.data import calibration_windows, evaluation_windows
from omniquant.errors import UnsupportedError
from omniquant.evaluate import evaluate
from omniquant.models.load import EMBEDDED_NAME, load_model
from omniquant.progress import MapSnapshots
from omniquant.quantized import CalibrationResult

ALL_METHODS = ("rtn", "smoothquant", "omniquant", "affinequant")
CASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("W4A4", ALL_METHODS),
    ("W3A16", ("rtn", "omniquant", "affinequant")),
    ("W2A16g64", ("rtn", "omniquant", "affinequant")),
)
ROWS = 1 + sum(len(methods) for _, methods in CASES)  # full precision is the first
SEQLEN = 256


@dataclass(frozen=True)
class DemoRow:
    """One line of the table."""

    scheme: str
    method: str
    perplexity: float
    ratio: float  # to full precision
    seconds: float  # of the calibration
    min_margin: float | None  # smallest dominance margin; None without affine maps
    approximate: bool  # whether a learned map is no equivalence

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Demo:
    """What the demo found."""

    rows: list[DemoRow]
    results: list[CalibrationResult]
    opening: MapSnapshots  # of the first result by affinequant

    def save_plots(self, folder: Path) -> list[Path]:
        """Write losses.png and opening.png; UnsupportedError without matplotlib."""
        from omniquant.plots import plot_losses, plot_opening, save_figure

        affine = next(result for result in self.results if result.method == "affinequant")
        figures = {"losses.png": plot_losses(self.results), "opening.png": plot_opening(affine, self.opening)}
        folder.mkdir(parents=True, exist_ok=True)
        return [save_figure(figure, folder / name) for name, figure in figures.items()]


def run_demo(
    *,
    samples: int = 16,
    epochs: int | None = None,
    max_tokens: int = 16384,
    seed: int = 0,
    threads: int | None = None,
    say: Callable[[DemoRow], None] = lambda row: None,
) -> Demo:
    """Quantize the embedded model by every method at W4A4, W3A16 and W2A16g64.

    Parameters
    ----------
    samples : int
        Calibration windows of 256 tokens, from the documentation inside the running Python.
    epochs : int, optional
        None: the papers' (20, at 2 bits 40).
    max_tokens : int
        Evaluation tokens, from documents that neither training nor calibration has seen.
    seed : int
    threads : int, optional
    say : callable
        Called with each row as soon as it is known.

    Returns
    -------
    Demo
    """
    model = load_model(EMBEDDED_NAME)
    calibration = calibration_windows(None, model, samples, SEQLEN)
    evaluation = evaluation_windows(None, model, SEQLEN, max_tokens)
    full = evaluate(model, evaluation, threads=threads).perplexity
    rows = [DemoRow("full precision", "", full, 1.0, 0.0, None, False)]
    say(rows[0])
    results = []
    opening = MapSnapshots()
    for scheme, methods in CASES:
        for method in methods:
            result = calibrate(
                model,
                calibration,
                scheme,
                method=method,
                epochs=epochs,
                seed=seed,
                threads=threads,
                progress=False,
                callbacks=[opening] if method == "affinequant" and not opening.maps else [],
            )
            results.append(result)
            rows.append(_row(result, result.evaluate(evaluation, threads=threads).perplexity, full))
            say(rows[-1])
    return Demo(rows, results, opening)


def _row(result: CalibrationResult, perplexity: float, full: float) -> DemoRow:
    from omniquant.describe import describe_maps

    maps = describe_maps(result.options, result.architecture.spec)
    return DemoRow(
        scheme=str(result.scheme),
        method=result.method,
        perplexity=perplexity,
        ratio=perplexity / full,
        seconds=round(result.seconds, 2),
        min_margin=result.summary()["min_margin"],
        approximate=any(not entry.exact for entry in maps),
    )


HEADINGS = ("scheme", "method", "perplexity", "x full", "seconds", "margin")


def cells(row: DemoRow) -> tuple[str, ...]:
    """Return a row's text, one string a heading."""
    margin = "" if row.min_margin is None else f"{row.min_margin:.3f}"
    seconds = f"{row.seconds:.1f}" if row.method else ""
    method = f"{row.method} ~" if row.approximate else row.method
    return row.scheme, method, f"{row.perplexity:.3f}", f"{row.ratio:.3f}", seconds, margin


def render(rows: list[DemoRow]) -> str:
    """Return the table: by rich where it is installed, else plain."""
    try:
        return _rich_table(rows)
    except ImportError:
        return plain_table(rows)


def plain_table(rows: list[DemoRow]) -> str:
    """Return the table in plain text."""
    lines = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    texts = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(text.rstrip() for text in texts)


def _rich_table(rows: list[DemoRow]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{EMBEDDED_NAME}, fake-quantized")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*cells(row), end_section=following is None or following.scheme != row.scheme)
    console = Console()
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def plots_or_reason(demo: Demo, folder: Path) -> tuple[list[Path], str]:
    """Return the written figures, or none and why."""
    try:
        return demo.save_plots(folder), ""
    except UnsupportedError as error:
        return [], str(error)

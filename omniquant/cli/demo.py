"""``omniquant demo``: every method on the model inside this package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omniquant.cli.common import Commands, add_run_options, command, emit, note, shown_progress

if TYPE_CHECKING:
    from omniquant.demo import DemoRow

_EXAMPLES = """\
  omniquant demo                          about two minutes on two cores
  omniquant demo --samples 8 --epochs 4   a quick look
  omniquant demo --json --output figures

The model is a small LLaMA with a few outlier channels, as large models have them, trained on Python's own
documentation. Margins are those of strict diagonal dominance: above 0, every affine map is invertible.
"~" marks methods that learn an approximate map between Q and K (no equivalence under rotary positions; free
at run time).
"""

_LEGEND = (
    "perplexity: lower is better; x full: relative to full precision.\n"
    "margin: smallest dominance margin; above 0, every affine map is invertible.\n"
    "~: learns an approximate map between Q and K (no equivalence, no cost at run time).\n"
    "All rows are fake-quantized: values rounded to the integers' grid, computed in float."
)


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "demo",
        run,
        usage="[--output DIR] [options]",
        help="quantize the embedded model by every method",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--output", metavar="DIR", default="omniquant-demo", help="for plots; default omniquant-demo"
    )
    parser.add_argument(
        "--samples", type=int, default=16, metavar="N", help="calibration windows, default 16"
    )
    parser.add_argument("--epochs", type=int, help="default 20, 40 at 2 bits")
    parser.add_argument(
        "--max-tokens", type=int, default=16384, metavar="N", help="to evaluate on, default 16384"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-plots", action="store_true", help="the table alone")
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo and report."""
    from omniquant.demo import plots_or_reason, render, run_demo

    with _told(arguments) as say:
        demo = run_demo(
            samples=arguments.samples,
            epochs=arguments.epochs,
            max_tokens=arguments.max_tokens,
            seed=arguments.seed,
            threads=arguments.threads,
            say=say,
        )
    paths, reason = ([], "") if arguments.no_plots else plots_or_reason(demo, Path(arguments.output))
    if reason:
        note(arguments, f"no plots: {reason}")
    data = {"rows": [row.to_dict() for row in demo.rows], "plots": [str(path) for path in paths]}
    written = "".join(f"\nwrote {path}" for path in paths)
    emit(arguments, data, f"{render(demo.rows)}\n{_LEGEND}{written}")


@contextmanager
def _told(arguments: argparse.Namespace) -> Iterator[Callable[[DemoRow], None]]:
    """Tell each row as it comes; count them in a bar where the table follows on the same terminal."""
    from omniquant.demo import ROWS, cells
    from omniquant.forward import Steps

    if arguments.json or not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield lambda row: note(arguments, "  ".join(filter(None, cells(row))))
        return
    with shown_progress(arguments) as progress:
        step = Steps(progress, ROWS)
        yield lambda row: step()

"""What the commands share: options, output, and telling a model from a result."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniquant.errors import DataError
from omniquant.manifest import MANIFEST_NAME
from omniquant.models.load import EMBEDDED_NAME, check_there
from omniquant.progress import NowAndThen

if TYPE_CHECKING:
    from omniquant.forward import Progress
    from omniquant.models.model import Model
    from omniquant.quantized import QuantizedModel

Commands = Any  # argparse's own type for sub-parsers is private


def command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    *,
    usage: str,
    help: str,  # argparse's own name for it
    examples: str,
) -> argparse.ArgumentParser:
    """Add a command with its examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=f"omniquant {name} {usage}",
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_run_options(parser: argparse.ArgumentParser, *, threads: bool = True) -> None:
    """Add --threads, --json and --quiet."""
    group = parser.add_argument_group("running")
    if threads:
        group.add_argument(
            "--threads", type=int, metavar="N", help="default: every processor; results do not depend on it"
        )
    group.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    group.add_argument("--quiet", action="store_true", help="no progress on standard error")


def emit(arguments: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    """Write a command's result to standard output: JSON where asked for, else text."""
    print(json.dumps(finite(data), allow_nan=False) if arguments.json else text)


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(arguments: argparse.Namespace, line: str) -> None:
    """Write a line for people to standard error."""
    if not arguments.quiet:
        print(line, file=sys.stderr, flush=True)


def is_result(path: str) -> bool:
    """Tell whether a path is a directory that omniquant quantize wrote."""
    try:
        return (Path(path) / MANIFEST_NAME).is_file()
    except (OSError, ValueError):  # an impossible path; the loader says so
        return False


def open_any(path: str) -> Model | QuantizedModel:
    """Open a model, or a finished result."""
    if is_result(path):
        from omniquant.quantized import QuantizedModel

        return QuantizedModel.load(path)
    from omniquant.models.load import load_model

    return load_model(path)


def check_paths(*models: str | None) -> None:
    """Raise CheckpointError for the first path that leads nowhere, before anything else is asked for."""
    for path in models:
        if path is not None:
            check_there(path)


def check_data(data: str | None, name: str) -> None:
    """Raise DataError when there is neither a file nor a model that brings its own text."""
    if data is None and data_option(name):
        raise DataError(f"--data is needed: only {EMBEDDED_NAME} brings text of its own")


def data_option(name: str) -> str:
    """Return what a command to come needs to name a text, nothing for the model that brings its own."""
    return "" if name == EMBEDDED_NAME else " --data TEXT"


@contextmanager
def shown_progress(arguments: argparse.Namespace) -> Iterator[Progress | None]:
    """Show a bar on a terminal, a line now and then elsewhere.

    What a step is, a block over some windows or a window, the runtime decides.
    """
    if arguments.quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield NowAndThen("step")
        return
    from tqdm import tqdm

    with tqdm(unit="step", leave=False, file=sys.stderr) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update

"""``omniquant evaluate``: perplexity of a model or of a result."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from omniquant.cli.common import Commands, add_run_options, check_data, command, emit, open_any
from omniquant.errors import ConfigError

_EXAMPLES = """\
  omniquant evaluate MODEL --data text.txt --seqlen 256       full precision, to compare with
  omniquant evaluate DIR --data text.txt --seqlen 256         the result of omniquant quantize
  omniquant evaluate DIR --data tokens.npy --max-tokens 24576 --json
  omniquant evaluate DIR --data text.txt --runtime integer    on packed integers

Perplexity: windows that do not overlap, exp of the mean cross entropy of each window's T - 1 predictions; no
beginning-of-sequence token. Results are evaluated fake-quantized: weights dequantized from their codes,
activations rounded on the way, all in float32; with --runtime integer on packed integers, as generate runs.
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "evaluate",
        run,
        usage="MODEL_OR_DIR --data FILE [--seqlen T] [--max-tokens N] [options]",
        help="measure the perplexity of a model or result",
        examples=_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL_OR_DIR", help="a model, or the output of omniquant quantize")
    parser.add_argument(
        "--data", metavar="FILE", help="a text file, or a .npy of token ids (stream or windows)"
    )
    parser.add_argument("--seqlen", type=int, default=256, metavar="T", help="tokens a window, default 256")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="use the first N tokens only")
    parser.add_argument(
        "--runtime", choices=("fake", "integer"), default="fake", help="how a result is run, default fake"
    )
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and report."""
    from omniquant.data import evaluation_windows
    from omniquant.evaluate import evaluate
    from omniquant.models.model import Model
    from omniquant.quantized import QuantizedModel
    from omniquant.runtime.perplexity import evaluate_on
    from omniquant.threads import resolve_threads

    threads = resolve_threads(arguments.threads)
    model = open_any(arguments.model)
    check_data(arguments.data, model.name)
    # Tokenizer, vocabulary and longest sequence are all that is asked of it.
    windows = evaluation_windows(arguments.data, cast(Model, model), arguments.seqlen, arguments.max_tokens)
    with _progress(arguments) as progress:
        if isinstance(model, QuantizedModel):
            found = evaluate_on(model, windows, runtime=arguments.runtime, threads=threads, progress=progress)
        else:
            found = evaluate(model, windows, threads=threads, progress=progress)
    data: dict[str, Any] = {**found.to_dict(), "model": model.name, "scheme": None, "method": None}
    what = "full precision"
    if isinstance(model, QuantizedModel):
        data |= {"scheme": str(model.scheme), "method": model.options.method, "runtime": arguments.runtime}
        how = "fake-quantized" if arguments.runtime == "fake" else "on integers"
        what = f"{model.scheme} {model.options.method}, {how}"
    elif arguments.runtime == "integer":
        raise ConfigError(f"--runtime integer: {model.name} is no result of omniquant quantize")
    data["fake_quantized"] = data.get("runtime") == "fake"
    text = (
        f"{model.name} ({what}): perplexity {found.perplexity:.4f} on {found.tokens} tokens "
        f"({found.windows} windows of {found.seqlen}), {found.seconds:.1f} s"
    )
    emit(arguments, data, text)


@contextmanager
def _progress(arguments: argparse.Namespace) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar over blocks on a terminal, nothing elsewhere."""
    if arguments.quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="block", leave=False, file=sys.stderr) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update

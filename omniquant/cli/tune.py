"""``omniquant tune``: train a result's scales and gains end to end."""

from __future__ import annotations

import argparse
import time
from typing import Any

from omniquant.cli.common import (
    Commands,
    add_run_options,
    check_data,
    check_paths,
    command,
    data_option,
    emit,
    note,
    shown_progress,
)

_EXAMPLES = """\
  omniquant tune DIR --model MODEL --data text.txt --samples 128 --seqlen 512 --output tuned
  omniquant tune DIR --model MODEL --data text.txt --output tuned --resume    go on after a kill

DIR is what omniquant quantize made of MODEL. Its codes stay, its scales learn together to predict the next
tokens as MODEL does (E2E-QP of EfficientQAT, by the Kullback-Leibler divergence). The format of the result
stays, and what it costs to run. A window takes about four times what evaluating it takes. One window of eight
is not learned from: it tells whether the tuning helped, and if not, all stays.
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "tune",
        run,
        usage="DIR --model MODEL --output TUNED [--data FILE] [options]",
        help="train the scales of a quantized result end to end",
        examples=_EXAMPLES,
    )
    parser.add_argument("result", metavar="DIR", help="the output of omniquant quantize")
    parser.add_argument("--model", required=True, metavar="MODEL", help="what it was made from")
    parser.add_argument("--output", required=True, metavar="TUNED", help="a new directory")
    parser.add_argument("--resume", action="store_true", help="go on with what TUNED.tuning holds")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", metavar="FILE", help="a text file, or a .npy of token ids: one stream, or windows [N, T]"
    )
    group.add_argument(
        "--samples", type=int, default=128, metavar="N", help="windows, default 128; of a short text fewer"
    )
    group.add_argument("--seqlen", type=int, default=256, metavar="T", help="tokens a window, default 256")
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=1, help="times through the windows, default 1")
    group.add_argument(
        "--lr",
        type=float,
        metavar="RATE",
        help="of the scales' logarithms, default 0.003; weights alone, 4 bits and more: 0.001",
    )
    group.add_argument("--seed", type=int, default=0, help="decides the order of windows, default 0")
    parser.add_argument("--memory", metavar="SIZE", help="of the windows' hidden states; default 4GiB")
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Tune and report."""
    from omniquant.data import calibration_windows
    from omniquant.memory import DEFAULT_MEMORY, peak_rss_mib
    from omniquant.models.load import load_model
    from omniquant.quantized import CalibrationResult
    from omniquant.tuning.tune import tune

    started = time.monotonic()
    check_paths(arguments.result, arguments.model)
    check_data(arguments.data, arguments.model)
    result = CalibrationResult.load(arguments.result)
    model = load_model(arguments.model)
    windows = calibration_windows(arguments.data, model, arguments.samples, arguments.seqlen)
    about = f"{len(windows)} windows of {windows.shape[1]} tokens"
    note(arguments, f"{arguments.result}: {result.scheme} {result.method}, {about}")
    with shown_progress(arguments) as progress:
        tuned = tune(
            result,
            model,
            windows,
            epochs=arguments.epochs,
            lr=arguments.lr,
            seed=arguments.seed,
            output=arguments.output,
            resume=arguments.resume,
            threads=arguments.threads,
            memory=arguments.memory or DEFAULT_MEMORY,
            progress=progress,
        )
    tuning = tuned.header.tuning
    assert tuning is not None  # tune() has just set it
    seconds, peak = time.monotonic() - started, peak_rss_mib()
    facts: dict[str, Any] = {"helped": tuning.helped, "seconds": round(seconds, 3), "peak_rss_mib": peak}
    data = {"output": arguments.output, **tuning.to_dict(), **facts}
    text = (
        f"{arguments.output}: {tuning}, {seconds:.1f} s, peak memory {peak:.0f} MiB\n"
        f"next: omniquant evaluate {arguments.output}{data_option(model.name)} --against {arguments.model}"
    )
    emit(arguments, data, text)

"""The command line: ``omniquant quantize | tune | export | evaluate | generate | info | bench | demo``.

Exit status: 0 done, 2 bad input (one line on standard error says what and where), 130 interrupted (quantize
and tune keep what is finished). With ``--json`` standard output carries one JSON object and nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from omniquant._version import __version__
from omniquant.cli import bench, demo, evaluate, export, generate, info, quantize, tune
from omniquant.errors import OmniQuantError

DONE, BAD_INPUT, BROKEN_PIPE, INTERRUPTED = 0, 2, 141, 130

_EPILOG = """\
examples:
  omniquant demo                                 quantize the model inside this package, four methods
  omniquant info MODEL                           what a model, a .gguf file or a result is made of
  omniquant quantize MODEL --scheme W4A4 --method affinequant --data TEXT --output DIR
  omniquant tune DIR --model MODEL --data TEXT --output TUNED   train its scales end to end
  omniquant export DIR --format gguf --output PATH   a folder that another engine loads
  omniquant bench MODEL --scheme W4A4            what that will cost on this machine
  omniquant evaluate DIR --data TEXT             perplexity of the result, or of any model
  omniquant generate DIR --prompt TEXT           text from the result, on integer kernels

MODEL is a Hugging Face folder (families: omniquant info --families), a .gguf file, or "omniquant-tiny".
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="omniquant",
        description="Post-training quantization of language models by OmniQuant and AffineQuant.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"omniquant {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (quantize, tune, export, evaluate, generate, info, bench, demo):
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; None: those of the process.

    Returns
    -------
    int
        0 done, 2 bad input, 130 interrupted.
    """
    options = argparse.Namespace()
    try:
        build_parser().parse_args(arguments, options)
        options.run(options)
        sys.stdout.flush()
        return DONE
    except KeyboardInterrupt:
        # Only what has an option --resume keeps anything.
        kept = "; what is finished is kept, go on with --resume" if hasattr(options, "resume") else ""
        print(f"omniquant: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not complain about it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (OmniQuantError, ValueError, OSError, MemoryError) as error:
        print(f"omniquant: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory: {text}" if text else "out of memory"
    return text or type(error).__name__

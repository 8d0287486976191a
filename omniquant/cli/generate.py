"""``omniquant generate``: continue a text on the integer kernels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from omniquant.checkpoint.graphs import refuse_graph
from omniquant.cli.common import Commands, add_run_options, command, emit, is_result, note
from omniquant.errors import CheckpointError

_EXAMPLES = """\
  omniquant generate DIR --prompt "Once upon a time"
  omniquant generate DIR --chat --prompt "What is the capital of France?" --max-new-tokens 64
  omniquant generate DIR --prompt "A poem:" --temperature 0.8 --top-p 0.95 --seed 7 --json

DIR is a result of omniquant quantize. The text goes to standard output as it is generated, the rates (prompt
and generated tokens a second, apart) to standard error. Without --temperature the likeliest token is taken.
"""


_ENDS = {
    "end": "the text ended",
    "stop": "a stop text came",
    "length": "as many as were asked for",
}


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "generate",
        run,
        usage="DIR --prompt TEXT [--chat] [--max-new-tokens N] [--temperature T] [options]",
        help="continue a text with a quantized model",
        examples=_EXAMPLES,
    )
    parser.add_argument("model", metavar="DIR", help="the output of omniquant quantize")
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT", help="what to continue; - reads it from stdin"
    )
    parser.add_argument(
        "--chat", action="store_true", help="the prompt is a message, for the model's chat template"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default 128")
    choice = parser.add_argument_group("choosing tokens")
    choice.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="default 0: always the likeliest"
    )
    choice.add_argument("--top-k", type=int, default=0, metavar="K", help="of the K likeliest only; 0: all")
    choice.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="of the likeliest that reach P together; 1: all"
    )
    choice.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same text")
    choice.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Generate and report."""
    from omniquant.quantized import QuantizedModel

    if not is_result(arguments.model):
        refuse_graph(Path(arguments.model))
        raise CheckpointError(f"{arguments.model}: no result of omniquant quantize: only those are run here")
    model = QuantizedModel.load(arguments.model)
    text = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    stream = model.stream(
        [{"role": "user", "content": text}] if arguments.chat else text,
        threads=arguments.threads,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop=arguments.stop,
    )
    if arguments.json:
        about = {"model": model.name, "scheme": str(model.scheme), "method": model.options.method}
        emit(arguments, stream.run().to_dict() | about | {"kernel": model.engine().facts()["kernel"]}, "")
        return
    for piece in stream:
        print(piece, end="", flush=True)
    print()
    found = stream.result
    note(
        arguments,
        f"{found.prompt_tokens} prompt tokens at {found.prefill_rate:.1f}/s, "
        f"{len(found.tokens)} generated at {found.decode_rate:.1f}/s, {_ENDS[found.finish]}",
    )

"""``omniquant export``: write a result as a model folder that another engine loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from omniquant.cli.common import Commands, add_run_options, command, emit, is_result
from omniquant.errors import ConfigError

_EXAMPLES = """\
  omniquant export DIR --format gguf --output model-gguf                        llama.cpp
  omniquant export DIR --format compressed-tensors --output model-ct            transformers, vLLM
  omniquant export DIR --format onnx --variant dequantize-linear --output model-onnx
  omniquant export DIR --format huggingface --weights-only --output model       W4A4: weights alone

What a format cannot hold is refused with the reason and the nearest thing that works. Calibrate with
--target FORMAT to lose nothing where a format keeps scales in float16 (gguf, gptq, awq).
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    from omniquant.config.target import TARGETS

    parser = command(
        commands,
        "export",
        run,
        usage="DIR --format FORMAT --output PATH [options]",
        help="write a result as a model folder that another engine loads",
        examples=_EXAMPLES,
    )
    parser.add_argument("result", metavar="DIR", help="the output of omniquant quantize")
    formats = [name for name in TARGETS if name != "any"]
    parser.add_argument("--format", required=True, choices=formats, help="who will read it")
    parser.add_argument("--output", required=True, metavar="PATH", help="a new folder")
    parser.add_argument("--variant", help="another layout of the format: gptq v1, onnx dequantize-linear")
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="leave out the quantizers of activations",
    )
    parser.add_argument(
        "--perplexity",
        action="append",
        default=[],
        metavar="TEXT=VALUE",
        help="a measured perplexity for the model card; may be given again",
    )
    add_run_options(parser, threads=False)


def run(arguments: argparse.Namespace) -> None:
    """Export and report."""
    measured = dict(_measured(text) for text in arguments.perplexity)
    if not is_result(arguments.result):
        raise ConfigError(f"{arguments.result}: no result of omniquant quantize")
    from omniquant.quantized import CalibrationResult

    result = CalibrationResult.load(arguments.result)
    folder = result.export(
        arguments.output,
        arguments.format,
        variant=arguments.variant,
        weights_only=arguments.weights_only,
        perplexity=measured,
    )
    files = [{"file": path.name, "bytes": path.stat().st_size} for path in sorted(folder.iterdir())]
    data = {
        "output": str(folder),
        "format": arguments.format,
        "model": result.header.model["name"],
        "scheme": str(result.scheme),
        "weights_only": arguments.weights_only,
        "files": files,
    }
    emit(arguments, data, _text(folder, arguments.format, files))


def _measured(text: str) -> tuple[str, float]:
    what, equals, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not what or not equals or not 0 < number < float("inf"):
        raise ConfigError(f"--perplexity {text!r} is not TEXT=VALUE, such as wikitext2=12.34")
    return what, number


def _text(folder: Path, name: str, files: list[dict[str, object]]) -> str:
    total = sum(int(str(entry["bytes"])) for entry in files)
    lines = [f"{folder}: {name}, {total:,} bytes in {len(files)} files"]
    lines += [f"{entry['bytes']:>13,}  {entry['file']}" for entry in files]
    return "\n".join(lines)

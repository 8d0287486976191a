"""``omniquant info``: what a model or a result is made of."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniquant.cli.common import Commands, add_run_options, command, emit, is_result
from omniquant.errors import ConfigError

if TYPE_CHECKING:
    from omniquant.models.adapter import Architecture

_EXAMPLES = """\
  omniquant info MODEL          sizes, kinds and the maps its blocks permit
  omniquant info DIR            scheme, method, maps and their cost, losses and margins, files
  omniquant info --families     the model families it reads, by their Hugging Face model_type
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "info",
        run,
        usage="(MODEL_OR_DIR | --families) [--json]",
        help="show what a model or a result is made of",
        examples=_EXAMPLES,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "model", metavar="MODEL_OR_DIR", nargs="?", help="a model, or the output of omniquant quantize"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="also draw sensitivities and chosen bits of --average-bits as a PNG"
    )
    what.add_argument("--families", action="store_true", help="list the model families instead")
    add_run_options(parser, threads=False)


def run(arguments: argparse.Namespace) -> None:
    """Look and report."""
    if arguments.families:
        families = _families()
        lines = [f"{each['model_type']:12} {each['class']}" for each in families]
        return emit(arguments, {"families": families}, "\n".join(lines))
    if arguments.plot:
        _plot(arguments.model, Path(arguments.plot))
    data = _result(Path(arguments.model)) if is_result(arguments.model) else _model(arguments.model)
    return emit(arguments, data, _text(data))


def _plot(model: str, path: Path) -> None:
    from omniquant.plots import plot_allocation, save_figure
    from omniquant.quantized import CalibrationResult

    if not is_result(model):
        raise ConfigError(f"--plot: {model} is no result of omniquant quantize --average-bits")
    print(f"wrote {save_figure(plot_allocation(CalibrationResult.load(model)), path)}", file=sys.stderr)


def _families() -> list[dict[str, str]]:
    from omniquant.models.registry import ADAPTERS

    return [
        {"model_type": kind, "family": adapter.name, "class": name}
        for adapter in ADAPTERS
        for kind, name in adapter.classes.items()
    ]


def _architecture(architecture: Architecture) -> dict[str, Any]:
    from omniquant.describe import linear_parameters
    from omniquant.permits import permitted_maps

    spec = architecture.spec
    hidden = architecture.vocab_size * spec.hidden_size
    linears = architecture.num_layers * linear_parameters(spec)
    return {
        "num_layers": architecture.num_layers,
        "vocab_size": architecture.vocab_size,
        "max_positions": architecture.max_positions,
        "tied_embeddings": architecture.tied_embeddings,
        "linear_weights": linears,
        "embedding_weights": hidden if architecture.tied_embeddings else 2 * hidden,
        "spec": spec.to_core(),
        "permits": [
            site.to_dict() | {"text": str(site)} for site in permitted_maps(spec, architecture.biases)
        ],
    }


def _model(path: str) -> dict[str, Any]:
    from omniquant.models.load import load_model

    model = load_model(path)
    return {
        "kind": "model",
        "model": model.name,
        "source": model.source,
        "family": model.family,
        **_architecture(model.architecture),
        "files": [{"file": file.name, "bytes": file.stat().st_size} for file in model.files()],
    }


def _result(folder: Path) -> dict[str, Any]:
    from omniquant.describe import bits_per_weight, describe_linears, describe_maps, described_choices
    from omniquant.quantized import CalibrationResult

    result = CalibrationResult.load(folder)
    outer, tuning = result.architecture, result.header.tuning
    maps = describe_maps(result.options, outer.spec)
    per_block = sum(entry.multiply_adds for entry in maps)
    return {
        "kind": "result",
        "output": str(folder),
        "source": result.header.model["source"],
        **result.summary(),
        "fake_quantized": True,
        "maps": [entry.to_dict() | {"text": str(entry)} for entry in maps],
        "approximate": [entry.site for entry in maps if not entry.exact],
        "online_multiply_adds_per_token": per_block * outer.num_layers,
        "bits_per_weight": bits_per_weight(result.scheme, outer.spec, outer.num_layers),
        "linears": describe_linears(result.scheme, outer.spec, outer.num_layers),
        "average_bits": result.header.budget,
        **_architecture(outer),
        "calibration": result.header.calibration,
        "tuning": None if tuning is None else tuning.to_dict() | {"text": str(tuning)},
        "options": result.options.to_dict(),
        "choices": described_choices(result.options),
        "files": [{"file": path.name, "bytes": path.stat().st_size} for path in sorted(folder.iterdir())],
    }


def _text(data: dict[str, Any]) -> str:
    lines = [f"model     {data['model']}: {data['source']}"]
    if data["kind"] == "result":
        lines = _result_lines(data)
    spec = data["spec"]
    lines += [
        f"blocks    {data['num_layers']}, hidden {spec['hidden_size']}, ffn {spec['ffn_size']}, "
        f"{spec['num_heads']} heads of {spec['head_dim']}, {spec['num_kv_heads']} key/value heads",
        f"kind      {spec['norm']} norm, {'rotary' if spec['rope'] else 'no rotary'} positions, "
        f"{spec['mlp']} {spec['activation']} MLP{_experts(spec)}, sequences up to {data['max_positions']}",
        f"weights   {data['linear_weights']:,} in linears, {data['embedding_weights']:,} in "
        f"{'the tied embedding' if data['tied_embeddings'] else 'embedding and head'}",
    ]
    lines += [f"permits   {entry['text']}" for entry in data["permits"]]
    total = sum(entry["bytes"] for entry in data["files"])
    lines.append(f"files     {total:,} bytes in {len(data['files'])}")
    lines += [f"          {entry['bytes']:>13,}  {entry['file']}" for entry in data["files"]]
    return "\n".join(lines)


def _fed(tokens: list[int]) -> str:
    """Return what is worth knowing of the tokens each expert saw."""
    from omniquant.report import LEAST_TOKENS

    starved = sum(count < LEAST_TOKENS for count in tokens)
    few = f", {starved} of them too few to learn from" if starved else ""
    return f", experts saw {min(tokens)} to {max(tokens)} tokens{few}" if tokens else ""


def _sinks(block: dict[str, Any]) -> str:
    """Return how many tokens are sinks behind a block, where there are some."""
    return f", {block['sinks']} sink tokens" if block.get("sinks") else ""


def _experts(spec: dict[str, Any]) -> str:
    if not spec.get("num_experts"):
        return ""
    shared = f" and a shared one of {spec['shared_ffn_size']}" if spec.get("shared_ffn_size") else ""
    return f" ({spec['experts_per_token']} of {spec['num_experts']} experts a token{shared})"


def _bits_lines(linears: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table of bits, a row a block."""
    blocks: dict[str, list[str]] = {}
    for name, entry in linears.items():
        blocks.setdefault(name.split(".")[1], []).append(entry["bits"])
    names = list(dict.fromkeys(name.split(".")[2] for name in linears))
    rows = [["block", *names], *([f"{block:>5}", *bits] for block, bits in blocks.items())]
    return [
        "bits      " + "".join(f"{cell:<{6 if i else 7}}" for i, cell in enumerate(row)).rstrip()
        for row in rows
    ]


def _trained(steps: int) -> str:
    return f"{steps} steps" if steps else "nothing trained"


def _result_lines(data: dict[str, Any]) -> list[str]:
    done = "" if data["complete"] else f" UNFINISHED: {len(data['blocks'])} of {data['num_layers']} blocks"
    took = f" in {data['seconds']:.1f} s" if data["complete"] else ""  # of an unfinished run nobody noted it
    lines = [
        f"result    {data['model']} ({data['source']}), fake-quantized{done}",
        f"scheme    {data['scheme']}: {data['bits_per_weight']:.3f} bits a weight, scales counted",
        f"method    {data['method']}{data['choices']}, {_trained(data['steps'])}{took} on "
        f"{data['calibration']['samples']} windows of {data['calibration']['seqlen']} tokens",
    ]
    if data["tuning"] is not None:
        lines.append(f"tuned     {data['tuning']['text']}")
    if len({entry["scheme"] for entry in data["linears"].values()}) > 1:
        lines += _bits_lines(data["linears"])
    lines += [f"map       {entry['text']}" for entry in data["maps"]] or ["map       none"]
    lines.append(
        f"run time  {data['online_multiply_adds_per_token']:,} multiply-adds a token added by online maps "
        "and rotations"
    )
    for block in data["blocks"]:
        margin = (
            ""
            if block["min_margin"] is None
            else f", margin {block['min_margin']:.3g} at {block['worst_row']}"
        )
        lines.append(
            f"block {block['index']:<4}loss rtn {block['loss_rtn']:.4g}, start {block['loss_initial']:.4g}, "
            f"kept {block['loss_final']:.4g} ({block['kept']}){margin}{_sinks(block)}"
            f"{_fed(block.get('expert_tokens', []))}"
        )
    return lines

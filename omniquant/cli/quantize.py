"""``omniquant quantize``: calibrate a model and write the result."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from omniquant.cli.common import (
    Commands,
    add_run_options,
    check_data,
    check_paths,
    command,
    data_option,
    emit,
    is_result,
    note,
)
from omniquant.config.method import CHOICES, METHODS, UNTRAINED
from omniquant.config.preset import PRESETS, SAMPLES, SEQLEN
from omniquant.config.recipe import AUTO
from omniquant.errors import ConfigError

_EXAMPLES = """\
  omniquant quantize omniquant-tiny --scheme W4A4 --method affinequant --output out
  omniquant quantize MODEL --scheme W2A16g64 --data text.txt --samples 128 --seqlen 2048 --output out
  omniquant quantize MODEL --scheme W4A4 --data text.txt --output out --resume     go on after a kill

schemes: W<bits>[s]A<bits>[s|sf][KV<bits>][sink<tokens>][g<group>]. W4A4 quantizes weights, activations, Q, K
and V at 4 bits; W4A4KV16 leaves Q, K and V in float, W4A4sink4 K and V of a text's first 4 tokens; W3A16
quantizes weights alone, one scale a row; W2A16g64 one scale every 64 weights. An s behind bits: symmetric, no
zero points; sf, of activations: with the largest step, as compressed-tensors stores them (W8sA8sfKV16).
--average-bits measures each linear on calibration tokens and spends the bits where they help most.
methods: rtn (round to nearest), smoothquant (fixed scales), gptq (error feedback), awq (searched scales and
clipping), omniquant (learned clipping and scales), affinequant (learned clipping and affine maps). The papers
use 128 windows of 2048 tokens.
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "quantize",
        run,
        usage="MODEL --scheme SCHEME --output DIR [--method METHOD] [--data FILE] [options]",
        help="calibrate a model and write the quantized result",
        examples=_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help='a folder, a .gguf file, or "omniquant-tiny"')
    parser.add_argument("--scheme", required=True, help="what to quantize to: W4A4, W3A16, W2A16g64, ...")
    parser.add_argument(
        "--method",
        choices=(*METHODS, AUTO),
        default="omniquant",
        help="default: omniquant; auto: what measured best for the scheme",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new directory for the result")
    parser.add_argument("--resume", action="store_true", help="go on with what DIR holds")
    parser.add_argument(
        "--target",
        choices=CHOICES["target"],
        help="calibrate in the arithmetic of an export format, so that exporting loses nothing",
    )
    _add_mixed(parser)
    _add_data(parser)
    _add_maps(parser)
    _add_training(parser)
    _add_memory(parser)
    add_run_options(parser)


def _add_mixed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("mixed precision")
    group.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="PATTERN=SCHEME",
        help="another scheme for some linears, 'model.layers.0.*=W8A8'; =float skips them; may be repeated, "
        "the last match counts",
    )
    group.add_argument(
        "--average-bits",
        type=float,
        metavar="B",
        help="choose the bits of all others for this budget a weight",
    )
    for name, what in (("embedding", "the embedding"), ("head", "the head, where it is another matrix")):
        group.add_argument(
            f"--{name}-bits",
            type=int,
            choices=(4, 8, 16),
            help=f"of {what}, with a scale every 32 inputs; default 16: as it is; tied models: give both",
        )
    group.add_argument(
        "--candidate-bits", default="2,3,4,8", metavar="LIST", help="to choose from, default 2,3,4,8"
    )


def _mixed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was wished for of mixed precision, as ``calibrate`` takes it."""
    from omniquant.mixed.plan import Wishes

    try:
        candidates = [int(part) for part in arguments.candidate_bits.split(",")]
    except ValueError:
        text = arguments.candidate_bits
        raise ConfigError(f"--candidate-bits {text!r}: expected numbers such as 2,3,4,8") from None
    wishes = Wishes.of(arguments.override, arguments.average_bits, candidates)
    return {
        "overrides": wishes.overrides,
        "average_bits": wishes.average_bits,
        "candidate_bits": wishes.candidates,
    }


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration data")
    group.add_argument(
        "--data", metavar="FILE", help="a text file, or a .npy of token ids: one stream, or windows [N, T]"
    )
    group.add_argument(
        "--samples", type=int, metavar="N", help=f"windows, default {SAMPLES}; of a short text fewer"
    )
    group.add_argument(
        "--seqlen", type=int, default=SEQLEN, metavar="T", help=f"tokens a window, default {SEQLEN}"
    )


def _add_maps(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is learned (default: as in the method's paper)")
    group.add_argument(
        "--rotation",
        choices=CHOICES["rotation"],
        help="calibrate in a rotated basis: folded into the weights, or at run time too (none)",
    )
    group.add_argument(
        "--norm-map",
        choices=CHOICES["norm_map"],
        help="between a norm and its linears; online: a full matrix, multiplied at run time (affinequant)",
    )
    group.add_argument(
        "--qk-map",
        choices=("none", "exact", "scale", "full"),
        help="between Q and K; scale and full are approximate under rotary positions",
    )
    group.add_argument(
        "--input-map",
        choices=CHOICES["input_map"],
        help="of every linear's input; kronecker: two small affine maps, at run time (affinequant)",
    )
    group.add_argument("--vo-map", choices=CHOICES["vo_map"], help="between V and the output projection")
    group.add_argument(
        "--up-down",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also scales between up and down; default: with omniquant, and with affinequant at A4 to A8",
    )
    group.add_argument(
        "--start",
        choices=CHOICES["start"],
        help="of clipping and scales; search: the best of a grid, as AWQ; default paper",
    )
    group.add_argument(
        "--rounding",
        choices=CHOICES["rounding"],
        help="of weights; gptq: error feedback at the end; learned: trained too; default nearest, "
        "of fast learned",
    )
    group.add_argument("--damping", type=float, help="of gptq, relative to the mean activity, default 0.01")
    group.add_argument(
        "--act-order",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="gptq rounds the columns of the largest inputs first (on)",
    )
    group.add_argument(
        "--true-sequential",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="gptq gathers each linear's inputs behind the rounded ones before it (off)",
    )
    group.add_argument(
        "--lac",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also learn where to clip activations (off)",
    )
    group.add_argument(
        "--alpha", type=float, help="exponent of the scales' start, default 0.5 (smoothquant 0.85)"
    )
    group.add_argument("--stability", type=float, help="stability factor of the gradual mask")
    group.add_argument(
        "--dominance",
        choices=CHOICES["dominance"],
        help="what to do with a step that loses strict diagonal dominance; default project",
    )
    group.add_argument("--margin", type=float, help="relative margin of a projected row, default 0.05")
    group.add_argument(
        "--parametrization", choices=CHOICES["parametrization"], help="of affine maps; default relative"
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--preset",
        choices=PRESETS,
        default="default",
        help="fast: few epochs at high rates, rounding learned too: a fifth of the time",
    )
    group.add_argument("--epochs", type=int, help="default 20, 40 at 2 bits; fast: 3, 8 at 2 bits")
    group.add_argument(
        "--early-stop",
        type=int,
        metavar="N",
        dest="patience",
        help="end a block after N epochs that lower its loss by less than 0.1 %% (off)",
    )
    group.add_argument("--seed", type=int, default=0, help="decides the order of windows, default 0")
    group.add_argument(
        "--loss", choices=CHOICES["loss"], help="of each token: plain, or relative to its update or to itself"
    )
    group.add_argument(
        "--sinks", choices=CHOICES["sinks"], help="whether tokens of massive state count in the loss (kept)"
    )
    group.add_argument("--products", choices=CHOICES["products"], help="arithmetic of a training step")
    group.add_argument("--gradients", choices=CHOICES["gradients"], help="the same of its way back")
    group.add_argument(
        "--aug-loss",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also match the original block on quantized inputs; default: on at A4 and at W2",
    )
    group.add_argument(
        "--look-ahead",
        type=int,
        metavar="N",
        help="the loss also looks through N blocks behind, at most 7 (0)",
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="windows a step, default 1")
    group.add_argument("--lr-lwc", type=float, metavar="RATE", help="of clipping, default 0.01")
    group.add_argument(
        "--lr-let", type=float, metavar="RATE", help="of maps; default 0.01, or 0.005 if constant"
    )
    group.add_argument(
        "--lr-rounding",
        type=float,
        metavar="RATE",
        help="of learned rounding, over all steps; default 1, of fast 3",
    )
    group.add_argument("--schedule", choices=CHOICES["schedule"], help="default cosine from 10 epochs on")
    group.add_argument(
        "--shuffle", action=argparse.BooleanOptionalAction, default=None, help="random order of windows (on)"
    )
    group.add_argument(
        "--best-iterate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the epoch of lowest loss, not the last (off)",
    )


def _add_memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory (results do not depend on it)")
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="of the windows' activations; beyond it they lie in files; default 4GiB",
    )
    group.add_argument("--scratch", metavar="DIR", help="the directory of those files; default --output's")


def run(arguments: argparse.Namespace) -> None:
    """Calibrate and report."""
    # Everything that can be wrong with the wishes is found before a file is read.
    from omniquant.config import CalibrationOptions, QuantConfig
    from omniquant.memory import DEFAULT_MEMORY, parse_bytes
    from omniquant.threads import resolve_threads

    check_paths(arguments.model)
    scheme = QuantConfig.parse(arguments.scheme)
    names = {field.name for field in fields(CalibrationOptions)} - {"method"}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    given["preset"] = arguments.preset
    options = CalibrationOptions.for_method(arguments.method, scheme, **given)
    mixed = _mixed(arguments)
    threads = resolve_threads(arguments.threads)
    memory = parse_bytes("--memory", arguments.memory or DEFAULT_MEMORY)
    check_data(arguments.data, arguments.model)
    if is_result(arguments.model):
        raise ConfigError(f"{arguments.model}: is quantized already, give the original model")
    if not options.trains and arguments.epochs:
        note(arguments, f"{arguments.method} trains nothing: --epochs {arguments.epochs} has no effect")

    from omniquant.calibration import calibrate, choose_options
    from omniquant.data import calibration_windows
    from omniquant.describe import counted, described_choices
    from omniquant.models.load import load_model

    model = load_model(arguments.model)
    samples = SAMPLES if arguments.samples is None else arguments.samples
    windows = calibration_windows(arguments.data, model, samples, arguments.seqlen)
    options = choose_options(arguments.method, scheme, model.architecture, given, len(windows))
    if arguments.samples is not None and len(windows) < samples:
        note(arguments, f"the data hold {counted(len(windows), 'window')}, {samples} were asked for")
    budget = f"{counted(len(windows), 'window')} of {windows.shape[1]} tokens"
    if options.method not in UNTRAINED:
        budget += f", {counted(options.epochs, 'epoch')}"
    note(
        arguments,
        f"{model.name} ({model.source}), {model.num_layers} blocks: {scheme} {options.method}"
        f"{described_choices(options)}, {budget}",
    )
    result = calibrate(
        model,
        windows,
        scheme,
        method=options,
        **mixed,
        output=arguments.output,
        resume=arguments.resume,
        threads=threads,
        memory=memory,
        scratch=arguments.scratch,
        progress=not arguments.quiet,
    )
    summary: dict[str, Any] = {"output": str(Path(arguments.output))} | result.summary()
    summary |= {"samples": windows.shape[0], "seqlen": windows.shape[1], "options": options.to_dict()}
    emit(arguments, summary, _text(summary))


def _text(summary: dict[str, Any]) -> str:
    margin = (
        "" if summary["min_margin"] is None else f", smallest dominance margin {summary['min_margin']:.3g}"
    )
    return (
        f"{summary['output']}: {summary['model']} {summary['scheme']} by {summary['method']}, "
        f"{len(summary['blocks'])} blocks in {summary['seconds']:.1f} s, "
        f"peak memory {summary['peak_rss_mib']:.0f} MiB{margin}\n"
        f"next: omniquant evaluate {summary['output']}{data_option(summary['model'])}"
    )

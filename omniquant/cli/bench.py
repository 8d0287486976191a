"""``omniquant bench``: what a calibration will cost on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict

from omniquant.bench import BenchResult, bench
from omniquant.cli.common import Commands, add_run_options, command, emit
from omniquant.config.method import CHOICES
from omniquant.config.preset import PRESETS, SAMPLES, SEQLEN
from omniquant.config.recipe import AUTO
from omniquant.describe import counted
from omniquant.errors import ConfigError
from omniquant.models.load import load_model
from omniquant.models.spec import BlockSpec
from omniquant.permits import permits_online
from omniquant.progress import rough_duration

_EXAMPLES = """\
  omniquant bench MODEL --scheme W4A4 --method affinequant --seqlen 512 --samples 128 --epochs 20
  omniquant bench MODEL --scheme W3A16g64 --method auto --samples 64 --seqlen 512
  omniquant bench --hidden 2048 --ffn 5632 --heads 32 --kv-heads 4 --layers 22 --scheme W3A16

A few steps of one block of random weights are timed, and its products by themselves; nothing is read but the
model's shape, and nothing is written.
"""
_NEEDED = ("hidden", "ffn", "heads")
_SIZES = (*_NEEDED, "kv_heads")


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "bench",
        run,
        usage="(MODEL | --hidden H --ffn F --heads N --kv-heads M) --scheme SCHEME [options]",
        help="time a few calibration steps and project them to the whole model",
        examples=_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a folder, a .gguf file or omniquant-tiny")
    shape = parser.add_argument_group("shape, instead of a model")
    for name in _SIZES:
        shape.add_argument(_option(name), type=int, metavar="N")
    shape.add_argument("--layers", type=int, metavar="N", help="blocks of the model; default 32")
    group = parser.add_argument_group("calibration")
    group.add_argument("--scheme", required=True)
    group.add_argument("--method", choices=("omniquant", "affinequant", AUTO), default="omniquant")
    group.add_argument("--target", choices=CHOICES["target"], help="the format auto's recipe is to fit")
    group.add_argument(
        "--seqlen", type=int, help=f"tokens a window; default {SEQLEN}, or as many as MODEL takes"
    )
    group.add_argument("--samples", type=int, default=SAMPLES, help=f"windows; default {SAMPLES}")
    group.add_argument("--preset", choices=PRESETS, default="default", help="as for quantize")
    group.add_argument("--epochs", type=int, help="default: the method's, or the preset's")
    group.add_argument("--norm-map", choices=CHOICES["norm_map"])
    group.add_argument("--look-ahead", type=int, metavar="N", help="blocks the loss looks through (0)")
    group.add_argument("--products", choices=CHOICES["products"], help="arithmetic of a training step")
    group.add_argument("--gradients", choices=CHOICES["gradients"], help="the same of its way back")
    parser.add_argument("--steps", type=int, default=5, help="steps to time; default 5")
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and report."""
    spec, layers, seqlen, online = _shape(arguments)
    result = bench(
        spec,
        arguments.scheme,
        arguments.method,
        seqlen=seqlen,
        samples=arguments.samples,
        layers=layers,
        steps=arguments.steps,
        threads=arguments.threads,
        online=online,
        target=arguments.target,
        preset=arguments.preset,
        epochs=arguments.epochs,
        norm_map=arguments.norm_map,
        products=arguments.products,
        gradients=arguments.gradients,
        look_ahead=arguments.look_ahead,
    )
    emit(arguments, asdict(result), _text(result))


def _shape(arguments: argparse.Namespace) -> tuple[BlockSpec, int, int, bool]:
    """Return a block's spec, the number of blocks, a window's tokens, whether online maps are permitted."""
    sizes = {name: getattr(arguments, name) for name in _SIZES}
    given = [name for name, value in sizes.items() if value is not None]
    if arguments.model is not None:
        if given:
            raise ConfigError(f"{_option(given[0])} describes a shape, MODEL already has one")
        model = load_model(arguments.model)
        most = min(SEQLEN, model.max_positions)
        seqlen = most if arguments.seqlen is None else arguments.seqlen
        model.check_seqlen(seqlen)
        return model.spec, arguments.layers or model.num_layers, seqlen, permits_online(model.architecture)
    layers = 32 if arguments.layers is None else arguments.layers
    return _spec(sizes), layers, SEQLEN if arguments.seqlen is None else arguments.seqlen, True


def _spec(sizes: Mapping[str, int | None]) -> BlockSpec:
    """Return the spec of a block of given sizes; ConfigError, by the options' names, where there is none."""
    given = {name: value for name, value in sizes.items() if value is not None}
    missing = [_option(name) for name in _NEEDED if name not in given]
    if not given:
        raise ConfigError(f"nothing to time: give a MODEL or a shape: {', '.join(missing)}")
    if missing:
        have = ", ".join(_option(name) for name in given)
        raise ConfigError(f"a shape needs {', '.join(missing)} beside {have}")
    for name, value in given.items():
        if value < 1:
            raise ConfigError(f"{_option(name)} is {value}, expected at least 1")
    hidden, ffn, heads = (given[name] for name in _NEEDED)
    if hidden % heads:
        raise ConfigError(f"--hidden {hidden} is no multiple of --heads {heads}")
    return BlockSpec(hidden, ffn, heads, given.get("kv_heads", heads), hidden // heads)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _arithmetic(result: BenchResult) -> str:
    return result.precision + ("" if result.gradients == "float" else f", gradients {result.gradients}")


def _text(result: BenchResult) -> str:
    took = rough_duration(result.projected_seconds)
    share, linears = (ms / result.ms_per_step for ms in (result.gemm_ms_alone, result.linears_ms_alone))
    arithmetic = f"{_arithmetic(result)}, {counted(result.threads, 'thread')}"
    windows = f"{counted(result.samples, 'window')} of {result.seqlen} tokens"
    return "\n".join(
        (
            f"a step           {result.ms_per_step:.1f} ms ({arithmetic})",
            f"products alone   {result.gemm_ms_alone:.1f} ms, {share:.0%} of a step (linears' {linears:.0%})",
            f"a forward pass   {result.ms_per_forward:.1f} ms (full precision)",
            f"whole model      {took} for {counted(result.layers, 'block')}: "
            f"{result.scheme} {result.method}, {windows}, {counted(result.epochs, 'epoch')}",
            f"peak memory      {result.peak_rss_mib:.0f} MiB here",
        )
    )

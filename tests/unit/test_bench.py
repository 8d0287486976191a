"""``omniquant bench``: what it measures adds up, and what it refuses."""

import json
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import small_folder
from ways import AVAILABLE

from omniquant import CalibrationOptions, QuantConfig, _core
from omniquant.bench import bench
from omniquant.cli import build_parser, main
from omniquant.config.preset import SAMPLES, SEQLEN
from omniquant.describe import linear_parameters
from omniquant.errors import ConfigError
from omniquant.models.spec import BlockSpec
from omniquant.products import step_products

SPEC = BlockSpec(64, 96, 4, 2, 16)


def products(scheme: str, method: str, kind: str, **options: object):
    config = QuantConfig.parse(scheme)
    chosen = CalibrationOptions.for_method(method, config, products=kind, **options)
    return step_products(SPEC, config, chosen, 32)


def work(of: str, scheme: str, method: str, **options: object) -> float:
    """Multiplications of a step's products of one sort."""
    found = products(scheme, method, "float32", **options)
    return sum(each.operations for each in found if each.of == of) / 2


def test_a_step_has_three_products_a_linear() -> None:
    every = work("linear", "W4A4", "omniquant")
    assert every == 3 * 32 * linear_parameters(SPEC)
    without = work("linear", "W3A16", "omniquant", norm_map="none")
    qkv = (64 + 32 + 32) * 64
    assert every - without == 32 * qkv  # no map before q, k, v: their inputs need no gradient
    by_weights = work("linear", "W3A16", "omniquant")
    assert by_weights == without  # a diagonal one learns from the weights' gradients
    assert work("linear", "W3A16", "affinequant", norm_map="online") == every


def test_attention_has_two_products_forward_and_five_back() -> None:
    """Of 32 queries with 32 keys each, the causal half not left out of one tile; every head by itself."""
    assert work("attention", "W4A4", "omniquant") == 7 * 4 * 32 * 32 * 16
    assert work("attention", "W3A16", "omniquant", look_ahead=2) == 3 * 7 * 4 * 32 * 32 * 16
    config = QuantConfig.parse("W4A4")
    chosen = CalibrationOptions.for_method("omniquant", config, products="bfloat16")
    long = [p for p in step_products(SPEC, config, chosen, 300) if p.of == "attention"]
    assert {p.kind for p in long} == {"bfloat16"}
    assert sum(p.m * p.n for p in long if p.k == 16) == 3 * (128 * 128 + 128 * 256 + 44 * 300)


def test_dense_maps_have_a_product_forward_and_one_or_two_back() -> None:
    assert work("map", "W4A4", "omniquant") == 0
    rows_of_q, rows_of_k, columns_of_o = 64 * 64 * 16, 32 * 64 * 16, 64 * 64 * 16
    of_vo = rows_of_k + columns_of_o
    assert work("map", "W3A16", "affinequant", qk_map="none") == 2 * of_vo
    assert work("map", "W3A16", "affinequant") == 2 * (of_vo + rows_of_q + rows_of_k)
    by_norms = 64 * 64 * (64 + 32 + 32 + 96 + 96)
    found = work("map", "W3A16", "affinequant", qk_map="none", norm_map="online")
    assert found == 2 * of_vo + rows_of_k + 2 * by_norms + 2 * 3 * 32 * 64 * 64


@pytest.mark.parametrize(
    ("scheme", "kind", "expected"),
    [
        ("W4A4", "float32", {"float32"}),
        ("W4A4", "bfloat16", {"integer", "bfloat16"}),
        ("W4A4g32", "bfloat16", {"bfloat16"}),
        ("W3A16", "integer", {"float32"}),
        ("W8A8", "integer", {"float32"}),
        ("W8sA8", "integer", {"integer", "float32"}),
    ],
)
def test_products_are_of_the_kinds_a_step_takes(scheme: str, kind: str, expected: set[str]) -> None:
    found = products(scheme, "affinequant", kind)
    assert {p.kind for p in found if p.of == "linear"} == expected


@pytest.mark.parametrize(
    ("scheme", "bits"), [("W4A4", {(8, 4)}), ("W3A16", {(8, 8), (8, 3)}), ("W3A16g16", {(8, 8)})]
)
def test_gradients_in_bytes_meet_codes_where_there_is_one_grid_a_row(
    scheme: str, bits: set[tuple[int, int]]
) -> None:
    found = products(scheme, "affinequant", "float32", gradients="int8")
    assert {(p.a_bits, p.b_bits) for p in found if p.kind == "integer"} == bits
    assert [p.kind for p in found].count("integer") >= 10


def test_each_block_looked_through_takes_two_products_a_linear() -> None:
    every = [products("W3A16", "omniquant", "float32", look_ahead=n) for n in (0, 1, 3)]
    counts = [sum(each.of == "linear" for each in found) for found in every]
    assert counts == [counts[0], counts[0] + 2 * 7, counts[0] + 2 * 7 * 3]


@pytest.mark.parametrize(("a", "b"), [(False, False), (False, True), (True, False), (True, True)])
def test_bare_products_are_timed(a: bool, b: bool) -> None:
    for kind in AVAILABLE:
        for own in (False, True):
            seconds = _core.time_product(kind, 64, 48, 80, transpose_a=a, transpose_b=b, own=own, repeats=4)
            assert seconds.shape == (4,)
            assert np.isfinite(seconds).all()


@pytest.mark.parametrize(("m", "kind", "message"), [(0, "float32", "m: expected"), (4, "float16", "kind")])
def test_products_that_do_not_exist_are_refused(m: int, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.time_product(kind, m, 4, 4)


@pytest.mark.parametrize("method", ["omniquant", "affinequant"])
def test_the_projection_adds_up(method: str) -> None:
    one = bench(SPEC, "W4A4", method, seqlen=16, samples=8, layers=1, steps=2, threads=1, epochs=3)
    # Of the 24 steps the first, and of the 48 other passes three of each of two windows, are in what begins.
    parts = one.ms_to_begin + 23 * one.ms_per_step + (48 - 6) * one.ms_per_forward
    assert one.projected_seconds == pytest.approx(parts / 1e3)
    assert one.ms_to_begin > 0
    assert one.ms_per_step > 0
    assert one.ms_per_gram == 0
    assert one.gemm_ms_alone > one.linears_ms_alone > 0
    assert one.peak_rss_mib > 0
    assert one.precision == _core.runtime_info()["products"]
    assert one.gradients == _core.runtime_info()["gradients"]


def test_a_searched_start_is_projected_too() -> None:
    one = bench(SPEC, "W3A16", "auto", seqlen=16, samples=8, layers=1, steps=2, threads=1)
    assert one.epochs == 3
    parts = one.ms_to_begin + 23 * one.ms_per_step + (40 - 6) * one.ms_per_forward + 6 * one.ms_per_gram
    assert one.projected_seconds == pytest.approx(parts / 1e3)
    assert one.ms_per_gram > 0


@pytest.mark.parametrize(
    ("method", "options", "rotated"),
    [("auto", {}, True), ("auto", {"online": False}, False), ("auto", {"target": "gguf"}, False)],
)
def test_auto_rotates_what_permits_it(
    method: str, options: dict[str, Any], rotated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    inner = _core.calibrate_block

    def calibrate_block(spec: dict[str, object], *arguments: object, **named: object) -> object:
        seen.append(spec)
        return inner(spec, *arguments, **named)

    monkeypatch.setattr(_core, "calibrate_block", calibrate_block)
    bench(SPEC, "W4A4", method, seqlen=16, samples=2, steps=1, threads=1, **options)
    assert bool(seen[0].get("rotate_down")) is rotated


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"samples": -1}, "samples is -1"),
        ({"method": "rtn"}, "takes no steps"),
        ({"epochs": 0}, "takes no steps"),
    ],
)
def test_senseless_runs_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(SPEC, "W4A4", **arguments)  # type: ignore[arg-type]


def test_the_command_prints_what_scripts_read(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--hidden", "64", "--ffn", "96", "--heads", "4", "--kv-heads", "2", "--layers", "3"]
    calibration = [
        "--scheme",
        "W4A4",
        "--method",
        "omniquant",
        "--seqlen",
        "16",
        "--samples",
        "4",
        "--epochs",
        "2",
    ]
    assert main(["bench", *shape, *calibration, "--steps", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {"ms_per_step", "gemm_ms_alone", "precision", "projected_seconds", "peak_rss_mib"}
    assert found["layers"] == 3


def test_the_command_takes_a_models_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "omniquant-tiny", "--scheme", "W3A16", "--seqlen", "32", "--steps", "1"]) == 0
    assert "for 5 blocks: W3A16 omniquant, 32 windows of 32 tokens, 20 epochs" in capsys.readouterr().out


def test_a_preset_is_projected(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "omniquant-tiny", "--scheme", "W4A4", "--seqlen", "16", "--steps", "1", "--json"]
    assert main([*command, "--preset", "fast"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 3


def test_what_quantize_takes_by_default_is_projected(capsys: pytest.CaptureFixture[str]) -> None:
    quantize = build_parser().parse_args(["quantize", "MODEL", "--scheme", "W3A16", "--output", "DIR"])
    assert main(["bench", "omniquant-tiny", "--scheme", "W3A16", "--steps", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["seqlen"]) == (SAMPLES, SEQLEN)
    assert quantize.seqlen == SEQLEN
    assert quantize.samples is None  # SAMPLES, of a short text fewer without a word
    defaults = {name: each.default for name, each in signature(bench).parameters.items()}
    assert (defaults["samples"], defaults["seqlen"]) == (SAMPLES, SEQLEN)


def test_windows_are_no_longer_than_the_model_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = str(small_folder(tmp_path / "short"))
    assert main(["bench", short, "--scheme", "W3A16", "--steps", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seqlen"] == 128
    assert main(["bench", "omniquant-tiny", "--scheme", "W3A16", "--seqlen", "512"]) == 2
    assert "omniquant-tiny takes 1 to 256" in capsys.readouterr().err
    assert main(["bench", "omniquant-tiny", "--scheme", "W3A16", "--seqlen", "0"]) == 2
    assert "0 tokens in a sequence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["omniquant-tiny", "--hidden", "64"], "--hidden describes a shape"),
        ([], "nothing to time: give a MODEL or a shape: --hidden, --ffn, --heads"),
        (["--hidden", "64"], "a shape needs --ffn, --heads beside --hidden"),
        (["--ffn", "8", "--heads", "4"], "a shape needs --hidden beside --ffn, --heads"),
        (["--kv-heads", "2"], "a shape needs --hidden, --ffn, --heads beside --kv-heads"),
        (["--hidden", "64", "--ffn", "0", "--heads", "4"], "--ffn is 0, expected at least 1"),
        (["--hidden", "64", "--ffn", "8", "--heads", "4", "--kv-heads", "0"], "--kv-heads is 0"),
        (["--hidden", "65", "--ffn", "8", "--heads", "4"], "no multiple of --heads"),
    ],
)
def test_the_command_refuses_half_a_shape(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments, "--scheme", "W4A4"]) == 2
    assert message in capsys.readouterr().err

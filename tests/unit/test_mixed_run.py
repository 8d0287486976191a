"""Mixed precision from the wish to the result directory: every method, resumed, damaged, run on integers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_run import contents, rewrite_manifest, small_folder, small_model, small_tokens

import omniquant
from omniquant import CalibrationResult, QuantizedModel
from omniquant.cli import main
from omniquant.config.method import METHODS
from omniquant.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from omniquant.mixed import allocation
from omniquant.plots import plot_allocation, save_figure
from omniquant.progress import Callback

MIXED = {"overrides": ["model.layers.0.*=W8A16", "*.down=W2A16", "layers.1.v=float"]}
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
BITS = [[8, 8, 8, 8, 8, 8, 2], [3, 3, 16, 3, 3, 3, 2]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


def run(model, scheme="W3A16g8", **options):
    defaults = {"method": "rtn", "progress": False, "threads": 1, **MIXED}
    return omniquant.calibrate(model, small_tokens(), scheme, **(defaults | options))


def read_all(folder):
    quantized = CalibrationResult.load(folder).fold()
    return [quantized.block(index) for index in (0, 1)]


def bits_of(result):
    return [[result.scheme.block(i)[name].bits for name in LINEARS] for i in (0, 1)]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((method, {}) for method in METHODS),
        ("omniquant", {"rounding": "learned"}),
        ("omniquant", {"rounding": "gptq", "start": "search"}),
        ("affinequant", {"norm_map": "online"}),
        ("affinequant", {"input_map": "kronecker", "norm_map": "none"}),
        ("omniquant", {"rotation": "folded"}),
    ],
)
def test_every_method_keeps_the_bits_of_every_linear(model, method, options, tmp_path):
    if method in ("omniquant", "affinequant"):
        options = {"epochs": 2, **options}
    result = run(model, method=method, output=tmp_path / "out", **options)
    assert bits_of(result) == BITS
    loaded = CalibrationResult.load(tmp_path / "out")
    assert loaded.scheme == result.scheme
    for index in (0, 1):
        folded = loaded.state(index).folded
        for name in LINEARS:
            linear = loaded.scheme.block(index)[name]
            if linear.quantized:
                assert folded[f"{name}.codes"].max() < 2**linear.bits
                assert len(np.unique(folded[f"{name}.codes"])) > min(2 ** (linear.bits - 1), 20)
            else:
                assert folded[f"{name}.weight"].dtype == np.float32
    if method == "rtn":
        np.testing.assert_array_equal(folded["v.weight"], model.block(1)["v.weight"])
    tokens = small_tokens(1, 20, seed=8)[0]
    quantized = QuantizedModel.load(tmp_path / "out")
    integer = quantized.logits(tokens)
    perplexities = [quantized.perplexity(tokens, 10, runtime=kind) for kind in ("integer", "fake")]
    assert np.isfinite(integer).all()
    assert perplexities[0] == pytest.approx(perplexities[1], rel=2e-3)  # keys and values as halves


def test_linears_of_a_block_are_those_of_results_of_their_scheme(model):
    mixed = run(model)
    for scheme, name, index in (("W8A16", "q", 0), ("W2A16", "down", 1), ("W3A16g8", "up", 1)):
        alone = run(model, scheme, overrides=())
        np.testing.assert_array_equal(
            mixed.fold().block(index)[f"{name}.weight"], alone.fold().block(index)[f"{name}.weight"]
        )


def test_whole_blocks_have_inputs_of_their_own(model):
    result = run(model, "W4A4KV16", overrides=["layers.0.*=W8A8"])
    assert [result.scheme.activation(i)["bits"] for i in (0, 1)] == [8, 4]
    coarse = run(model, "W4A4KV16", overrides=["layers.0.*=W8A4"])
    tokens = small_tokens(2, 20, seed=8)
    assert omniquant.perplexity(result, tokens) != omniquant.perplexity(coarse, tokens)
    integer = result.fold().perplexity(tokens[0], 20, runtime="integer")
    assert integer == pytest.approx(result.fold().perplexity(tokens[0], 20), rel=5e-3)
    skipped = run(model, "W4A4KV16", overrides=["*=float"])
    assert omniquant.perplexity(skipped, tokens) == omniquant.perplexity(model, tokens)


@pytest.mark.parametrize("wish", [MIXED, {"average_bits": 3.2, "overrides": ["layers.0.q=W8A16"]}])
def test_threads_do_not_matter_and_a_killed_run_resumes_to_the_same_bits(model, wish, tmp_path):
    class Kill(Callback):
        def on_block(self, report):
            raise KeyboardInterrupt

    options = {"method": "affinequant", "epochs": 2, **wish}
    run(model, output=tmp_path / "one", **options)
    run(model, output=tmp_path / "two", **{**options, "threads": 2})
    with pytest.raises(KeyboardInterrupt):
        run(model, output=tmp_path / "killed", callbacks=[Kill()], **options)
    run(model, output=tmp_path / "killed", resume=True, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "killed")


def test_a_resume_measures_nothing_again(model, tmp_path, monkeypatch):
    run(model, output=tmp_path / "out", average_bits=3.2)
    found = contents(tmp_path / "out")
    monkeypatch.setattr(allocation, "measure", lambda *_, **__: pytest.fail("measured again"))
    run(model, output=tmp_path / "out", resume=True, average_bits=3.2)
    assert contents(tmp_path / "out") == found
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(model, output=tmp_path / "out", resume=True, average_bits=3.3)


def test_a_resume_with_other_wishes_is_refused(model, tmp_path):
    run(model, output=tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"layers.0.gate W8A16, not W3A16g8"):
        run(model, output=tmp_path / "out", resume=True, overrides=MIXED["overrides"][1:])
    run(model, output=tmp_path / "chosen", overrides=(), average_bits=3.2)
    with pytest.raises(CheckpointError, match=r"average_bits 3.2, not None|layers\.\d"):
        run(model, output=tmp_path / "chosen", resume=True, overrides=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["overrides"].update({"layers.0.x": "W4A16"}), "'layers.0.x' is no linear"),
        (lambda body: body["overrides"].update({"layers.2.q": "W4A16"}), "'layers.2.q' is no linear"),
        (lambda body: body["overrides"].update({"layers.0.q": "W4"}), "scheme 'W4'"),
        (lambda body: body["overrides"].update({"layers.0.q": 4}), "layers.0.q is 4"),
        (lambda body: body.update(overrides=3), "overrides is 3"),
        (lambda body: body["overrides"].update({"layers.0.q": "W4A16"}), "block_00000.safetensors: q"),
        (lambda body: body["overrides"].pop("layers.1.v"), r"v"),
        (lambda body: body["allocation"].update(bits=[2.5, 3]), "bits"),
        (lambda body: body["allocation"].update(bits=[2, 3]), "4 numbers|2 numbers"),
        (lambda body: body["allocation"].pop("costs"), "costs"),
        (lambda body: body["allocation"]["costs"].update({"layers.9.q": [1, 1, 1, 1]}), "is no linear"),
        (lambda body: body["allocation"]["costs"].update({"layers.1.q": [1, 1, 1, "a"]}), "layers.1.q"),
        (lambda body: body["allocation"].update(average_bits=-1), "average_bits"),
    ],
)
def test_a_manifest_that_lies_is_refused(model, change, message, tmp_path):
    run(model, output=tmp_path / "out", average_bits=3.2)
    rewrite_manifest(tmp_path / "out", change)
    with pytest.raises(CheckpointError, match=message):
        read_all(tmp_path / "out")


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ({"overrides": ["layers.9.*=W4A16"]}, ConfigError, "matches no linear"),
        ({"overrides": ["layers.0.*=W99A16"]}, ConfigError, "W99A16"),
        ({"overrides": ["layers.0.down=W4A8"]}, ConfigError, "share"),
        ({"overrides": (), "average_bits": 1}, ConfigError, "outside the candidates"),
        ({"overrides": (), "average_bits": 3, "candidate_bits": [1, 4]}, ConfigError, "candidate bits"),
        ({"overrides": ["*=W8A16"], "average_bits": 3}, ConfigError, "leave no linear"),
        ({"target": "gptq"}, UnsupportedError, "gptq cannot hold mixed precision"),
        ({"overrides": (), "average_bits": 3, "target": "awq"}, UnsupportedError, "mixed precision"),
    ],
)
def test_wishes_that_cannot_be_are_refused_before_any_work(
    model, wish, error, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(type(model), "block", lambda self, index: pytest.fail("a block was read"))
    with pytest.raises(error, match=message):
        run(model, output=tmp_path / "out", **wish)
    assert not (tmp_path / "out").exists()


def test_the_command_line_and_what_info_tells(capsys, tmp_path):
    folder, tokens, out = small_folder(tmp_path / "model"), tmp_path / "tokens.npy", tmp_path / "out"
    np.save(tokens, small_tokens())
    start = [
        "quantize",
        str(folder),
        "--scheme",
        "W4A16g8",
        "--method",
        "rtn",
        "--data",
        str(tokens),
        "--quiet",
    ]
    mixed = [
        "--override",
        "model.layers.0.*=W8A16",
        "--override",
        "layers.0.q=float",
        "--average-bits",
        "2.6",
    ]
    assert main([*start, "--output", str(out), *mixed]) == 0
    capsys.readouterr()
    assert main(["info", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    linears = data["linears"]
    assert linears["layers.0.q"] == {"scheme": "W16A16", "bits": "float", "bits_per_weight": 32.0}
    assert linears["layers.0.k"] == {"scheme": "W8A16", "bits": "8", "bits_per_weight": 8 + 40 / 16}
    chosen = [entry for name, entry in linears.items() if name.startswith("layers.1")]
    sizes = [256, 128, 128, 256, 320, 320, 320]
    spent = [int(entry["bits"]) for entry in chosen]
    assert np.average(spent, weights=sizes) <= 2.6
    assert len(set(spent)) > 1
    everything = [entry["bits_per_weight"] for entry in linears.values()]
    assert data["bits_per_weight"] == pytest.approx(np.average(everything, weights=sizes * 2))
    figure = tmp_path / "bits.png"
    assert main(["info", str(out), "--plot", str(figure)]) == 0
    text = capsys.readouterr().out
    assert "bits      block  q     k     v     o     gate  up    down" in text
    assert "bits          0  float 8     8     8     8     8     8" in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    for wrong in (["--override", "layers.0.q"], ["--average-bits", "1"], ["--candidate-bits", "a"]):
        assert main([*start, "--output", str(tmp_path / "no"), *wrong]) == 2
    assert not (tmp_path / "no").exists()
    assert main(["info", str(folder), "--plot", str(figure)]) == 2


def test_the_figure_shows_costs_and_bits(model):
    pytest.importorskip("matplotlib")
    result = run(model, overrides=["layers.0.q=W8A16"], average_bits=3.2)
    costs, bits = plot_allocation(result).axes[:2]
    shown = [[text.get_text() for text in axis.texts] for axis in (costs, bits)]
    expected = np.transpose(bits_of(result))  # a row a linear, a column a block
    np.testing.assert_array_equal(bits.images[0].get_array(), expected)
    assert shown[1] == [str(b) for b in expected.ravel()]
    drawn = np.asarray(costs.images[0].get_array().filled(np.nan))
    measured = result.header.allocation.costs
    assert np.isnan(drawn[0, 0])
    assert drawn[6, 1] == pytest.approx(np.log10(measured["layers.1.down"][0]))
    with pytest.raises(UnsupportedError, match="no bits were chosen"):
        plot_allocation(run(model))


def test_a_figure_that_cannot_be_written_is_an_error_in_words(model, tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_allocation(run(model, average_bits=3.2))
    with pytest.raises(DataError, match=r"none/bits\.png: cannot write the figure: No such file"):
        save_figure(figure, tmp_path / "none" / "bits.png")
    with pytest.raises(DataError, match=r"bits\.xyz: cannot write the figure: Format 'xyz'"):
        save_figure(figure, tmp_path / "bits.xyz")

"""The loop: its streams, its result, its listeners, and that nothing it must not touch is touched."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from small_run import contents, small_model, small_tokens
from ways import AVAILABLE

import omniquant
from omniquant import CalibrationOptions, CalibrationResult, QuantConfig, _core
from omniquant.blockfile import dequantized, row_codes
from omniquant.errors import CheckpointError, ConfigError, DataError, NotFiniteError
from omniquant.forward import block_parts, run_block
from omniquant.progress import Callback


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


def run(model, scheme="W4A4", method="affinequant", tokens=None, **options):
    options = {"epochs": 2, "progress": False, "threads": 1} | options
    return omniquant.calibrate(
        model, small_tokens() if tokens is None else tokens, scheme, method=method, **options
    )


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def on_start(self, blocks, done, steps):
        self.events.append(("start", blocks, done, steps))

    def on_step(self, event):
        self.events.append(("step", event))

    def on_block(self, report):
        self.events.append(("block", report.index))

    def on_end(self):
        self.events.append(("end",))


@pytest.mark.parametrize("method", ["rtn", "smoothquant", "omniquant", "affinequant"])
@pytest.mark.parametrize("scheme", ["W4A4", "W3A16", "W2A16g8", "W6A6", "W4A4KV16"])
def test_every_method_runs_and_ends_no_worse_than_it_started(model, method, scheme):
    result = run(model, scheme, method)
    assert result.complete
    for report in result.blocks:
        assert report.loss_final <= min(report.loss_initial, report.loss_rtn) * (1 + 1e-6) or not report.steps
        assert (report.min_margin is not None) == (method == "affinequant")
        assert report.steps == (8 if method in ("omniquant", "affinequant") else 0)
    assert result.fold().scheme == QuantConfig.parse(scheme)


@pytest.mark.parametrize(("method", "read"), [("rtn", 32), ("gptq", 40)])
def test_plain_rounding_reads_only_the_windows_that_tell_its_loss(model, monkeypatch, method, read):
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (40, 8))
    result = run(model, "W4A8", method, tokens)
    assert result.header.calibration["samples"] == 40
    judges = [i * 40 // 32 for i in range(32)]
    embedded = []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda part: embedded.append(len(part)) or embed(part))
    again = run(model, "W4A8", method, tokens)
    assert sum(embedded) == read
    assert [report.loss_final for report in again.blocks] == [report.loss_final for report in result.blocks]
    alone = run(model, "W4A8", method, tokens[judges])
    same = [report.loss_final for report in alone.blocks] == [report.loss_final for report in result.blocks]
    assert same == (method == "rtn")


@pytest.mark.parametrize("products", AVAILABLE)
def test_streams_are_those_of_the_papers(model, monkeypatch, products):
    """Bit for bit. The quantized one passes codes, as sums of integers, unless products are of float32."""
    seen = []
    real = _core.calibrate_block

    def spy(spec, weights, x_fp, x_q, targets, aug, cos, sin, options, **rest):
        result = real(spec, weights, x_fp, x_q, targets, aug, cos, sin, options, **rest)
        seen.append((*(stream.copy() for stream in (x_fp, x_q, targets, aug)), result["folded"]))
        return result

    monkeypatch.setattr(_core, "calibrate_block", spy)
    scheme = QuantConfig.parse("W4A4")
    run(model, "W4A4", aug_loss=True, products=products)
    (x_fp, x_q, targets, aug, folded), (next_fp, next_q, next_targets, next_aug, _) = seen
    np.testing.assert_array_equal(x_fp, model.embed(small_tokens()))
    np.testing.assert_array_equal(x_q, x_fp)
    np.testing.assert_array_equal(targets, run_block(model, 0, model.block(0), x_fp))
    np.testing.assert_array_equal(aug, targets)
    np.testing.assert_array_equal(next_fp, targets)
    codes = None if products == "float32" else row_codes(folded)
    rounded, activation = dequantized(folded, scheme.block(0)), scheme.activation()
    passes = block_parts(model, 0, rounded, x_q, activation=activation, codes=codes)
    quantized = np.concatenate([y for _, y in passes])
    np.testing.assert_array_equal(next_q, quantized)
    np.testing.assert_array_equal(next_targets, run_block(model, 1, model.block(1), targets))
    np.testing.assert_array_equal(next_aug, run_block(model, 1, model.block(1), quantized))


def test_same_seed_same_bits_whatever_the_threads(model, tmp_path):
    for name, threads in (("one", 1), ("two", 2)):
        run(model, output=tmp_path / name, threads=threads, seed=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    run(model, output=tmp_path / "other", seed=6)
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_memory_and_directory_hold_the_same(model, tmp_path):
    in_memory, on_disk = run(model), run(model, output=tmp_path / "out")
    in_memory.save(tmp_path / "saved")
    assert contents(tmp_path / "saved") == contents(tmp_path / "out")
    loaded = CalibrationResult.load(tmp_path / "saved")
    tokens = small_tokens(3, 20, seed=8)
    assert {omniquant.perplexity(r, tokens) for r in (in_memory, on_disk, loaded)} == {
        in_memory.evaluate(tokens).perplexity
    }
    assert loaded.seconds == pytest.approx(in_memory.seconds, abs=1e-3)
    for mine, theirs in zip(in_memory.blocks, loaded.blocks, strict=True):
        assert mine.durable() == theirs.durable()
    with pytest.raises(CheckpointError, match="is saved there already"):
        loaded.save(tmp_path / "again")


def test_model_and_tokens_are_left_alone(model):
    tokens, before = small_tokens(), copy.deepcopy(model.block(0))
    run(model, tokens=tokens)
    np.testing.assert_array_equal(tokens, small_tokens())
    for name, values in model.block(0).items():
        np.testing.assert_array_equal(values, before[name])


def test_listeners_hear_every_step_and_block(model):
    recorder = Recorder()
    run(model, callbacks=[recorder])
    kinds = [event[0] for event in recorder.events]
    assert kinds == ["start", *["step"] * 8, "block", *["step"] * 8, "block", "end"]
    assert recorder.events[0] == ("start", 2, 0, 8)
    steps = [event[1] for event in recorder.events if event[0] == "step"]
    assert [step.step for step in steps] == [*range(1, 9), *range(1, 9)]
    assert [step.epoch for step in steps[:8]] == [0] * 4 + [1] * 4
    assert all(np.isfinite(step.loss) and 0 < step.min_margin <= 1.5 for step in steps)


def test_without_affine_maps_there_is_no_margin(model):
    recorder = Recorder()
    run(model, method="omniquant", callbacks=[recorder])
    assert {event[1].min_margin for event in recorder.events if event[0] == "step"} == {None}


def test_an_exception_of_a_listener_stops_and_keeps_what_is_done(model, tmp_path):
    class Stop(Recorder):
        def on_step(self, event):
            if event.block == 1 and event.step == 3:
                raise KeyboardInterrupt

    recorder = Stop()
    with pytest.raises(KeyboardInterrupt):
        run(model, output=tmp_path / "out", callbacks=[recorder])
    assert [event[0] for event in recorder.events] == ["start", "block", "end"]
    unfinished = CalibrationResult.load(tmp_path / "out")
    assert (len(unfinished.blocks), unfinished.complete) == (1, False)
    with pytest.raises(CheckpointError, match=r"unfinished, 1 of 2 blocks are done; continue with --resume"):
        unfinished.fold()
    run(model, output=tmp_path / "out", resume=True)
    run(model, output=tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_biases_are_carried_and_shifted(tmp_path):
    model = small_model(tmp_path / "biased", attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    result = run(model, output=tmp_path / "out")
    folded = result.state(0).folded
    assert {f"{name}.bias" for name in ("q", "k", "v", "o", "gate", "up", "down")} <= set(folded)
    loaded = CalibrationResult.load(tmp_path / "out")
    assert loaded.evaluate(small_tokens()).nll == result.evaluate(small_tokens()).nll


def test_online_maps_stay_behind_the_norms(model, tmp_path):
    run(model, norm_map="online", output=tmp_path / "out")
    loaded = CalibrationResult.load(tmp_path / "out")
    assert loaded.state(0).folded["norm1.inverse"].shape == (16, 16)
    assert np.isfinite(loaded.evaluate(small_tokens()).perplexity)


def test_nothing_quantized_is_the_model_itself(model):
    result = run(model, "W16A16", "rtn")
    tokens = small_tokens(3, 20)
    assert omniquant.perplexity(result, tokens) == pytest.approx(
        omniquant.perplexity(model, tokens), rel=1e-6
    )


def test_float_weights_with_rounded_activations(model, tmp_path):
    run(model, "W16A4", "omniquant", output=tmp_path / "out")
    loaded = CalibrationResult.load(tmp_path / "out")
    assert "q.weight" in loaded.state(0).folded
    assert np.isfinite(loaded.evaluate(small_tokens()).perplexity)


def test_options_can_be_made_beforehand(model):
    scheme = QuantConfig.parse("W4A4")
    options = CalibrationOptions.for_method("omniquant", scheme, epochs=1)
    result = omniquant.calibrate(model, small_tokens(), scheme, method=options, progress=False, seed=9)
    assert (result.options.seed, result.options.epochs, result.method) == (9, 1, "omniquant")
    with pytest.raises(ConfigError, match="options"):
        omniquant.calibrate(model, small_tokens(), scheme, method=options, progress=False, nonsense=1)


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        (np.zeros(12, np.int32), DataError),
        (np.zeros((2, 500), np.int32), DataError),
        (np.full((2, 8), 64), DataError),
    ],
)
def test_tokens_that_do_not_fit_are_refused_before_anything_is_written(model, tmp_path, tokens, error):
    with pytest.raises(error):
        run(model, tokens=tokens, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resume_without_a_directory_is_refused(model):
    with pytest.raises(ConfigError, match="resume needs an output"):
        run(model, resume=True)


def test_a_weight_that_is_not_a_number_is_named(model, monkeypatch, tmp_path):
    weights = {name: values.copy() for name, values in model.block(1).items()}
    weights["up.weight"][3, 5] = np.nan
    real = model.block
    monkeypatch.setattr(model, "block", lambda index: weights if index == 1 else real(index))
    with pytest.raises(
        NotFiniteError, match=r"block 1: up.weight: row 3 column 5 is nan; 1 finished blocks are kept"
    ):
        run(model, output=tmp_path / "out")


def test_summary_and_repr_say_what_it_is(model, tmp_path):
    result = run(model, output=tmp_path / "out")
    summary = result.summary()
    assert (summary["scheme"], summary["method"], summary["complete"], summary["steps"]) == (
        "W4A4",
        "affinequant",
        True,
        16,
    )
    assert summary["min_margin"] == min(report.min_margin for report in result.blocks)
    assert summary["peak_rss_mib"] > 10
    assert repr(result).endswith(f"W4A4 affinequant, 2/2 blocks in {str(tmp_path / 'out')!r})")
    assert result.folder == tmp_path / "out"

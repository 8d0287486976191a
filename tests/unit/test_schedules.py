"""How long a block trains: plateaus, and the preset of few epochs at high rates."""

from __future__ import annotations

import pytest
from small_run import contents, small_model, small_tokens

import omniquant
from omniquant import CalibrationOptions, QuantConfig
from omniquant.cli import main
from omniquant.errors import ConfigError
from omniquant.progress import Callback, StepEvent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


def run(model, output=None, **options):
    options = {"epochs": 12, "progress": False, "threads": 1} | options
    return omniquant.calibrate(model, small_tokens(), "W4A4", method="affinequant", output=output, **options)


class Steps(Callback):
    def __init__(self):
        self.events: list[StepEvent] = []

    def on_step(self, event):
        self.events.append(event)


# Nothing is learned at a rate of 0: every epoch after the first is a plateau.
STILL = {"lr_lwc": 0.0, "lr_let": 0.0, "shuffle": False}


@pytest.mark.parametrize(("patience", "epochs"), [(0, 12), (1, 2), (3, 4), (11, 12), (40, 12)])
def test_a_block_ends_after_so_many_epochs_without_progress(model, patience, epochs):
    steps = Steps()
    result = run(model, patience=patience, callbacks=[steps], **STILL)
    assert [len(report.trace) for report in result.blocks] == [epochs] * 2
    assert [report.steps for report in result.blocks] == [4 * epochs] * 2
    assert len(steps.events) == 2 * 4 * epochs


def test_progress_goes_on(model):
    learning = run(model, patience=1, schedule="constant", lr_lwc=1e-2, lr_let=1e-2)
    lengths = [len(report.trace) for report in learning.blocks]
    for report, length in zip(learning.blocks, lengths, strict=True):
        falls = [b < a * (1 - 1e-3) for a, b in zip(report.trace[:-1], report.trace[1:], strict=True)]
        assert all(falls[: length - 2])
        assert length == 12 or not falls[-1]
    assert max(lengths) > 2


def test_what_is_kept_was_evaluated_and_resumes_to_the_same_bits(model, tmp_path):
    options = {"patience": 1, "schedule": "constant", "best_iterate": True}
    for threads, name in ((1, "whole"), (2, "other")):
        run(model, tmp_path / name, threads=threads, **options)
    assert contents(tmp_path / "whole") == contents(tmp_path / "other")

    class Stop(Callback):
        def on_block(self, report):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "out", callbacks=[Stop()], **options)
    result = run(model, tmp_path / "out", resume=True, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for report in result.blocks:
        assert report.loss_final <= min(report.loss_initial, report.loss_rtn)


def test_a_layer_by_itself_stops_too():
    import numpy as np

    random = np.random.default_rng(0)
    W, X = random.standard_normal((8, 16), np.float32), random.standard_normal((32, 16), np.float32)
    result = omniquant.calibrate_linear(W, X, "W4A16", method="omniquant", epochs=9, patience=2, lr_lwc=0.0,
                                        lr_let=0.0, shuffle=False, batch_size=32)  # fmt: skip
    assert len(result.trace) == 3


@pytest.mark.parametrize(
    ("scheme", "epochs"), [("W4A4", 3), ("W3A16", 3), ("W2A16g64", 8)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("method", ["omniquant", "affinequant"])
def test_fast_is_few_epochs_at_high_rates_and_learned_rounding(method, scheme, epochs):
    config = QuantConfig.parse(scheme)
    fast = CalibrationOptions.for_method(method, config, preset="fast")
    usual = CalibrationOptions.for_method(method, config)
    assert (fast.epochs, fast.schedule, fast.rounding) == (epochs, "cosine", "learned")
    assert fast.lr_lwc > usual.lr_lwc
    assert fast.lr_let > usual.lr_let
    same = {"epochs", "schedule", "lr_lwc", "lr_let", "lr_rounding", "rounding"}
    differing = {name for name, value in fast.to_dict().items() if value != usual.to_dict()[name]}
    assert differing <= same


def test_a_preset_yields_to_what_is_said():
    config = QuantConfig.parse("W4A4")
    options = CalibrationOptions.for_method("omniquant", config, preset="fast", epochs=5, lr_lwc=0.5)
    assert (options.epochs, options.lr_lwc, options.lr_let) == (5, 0.5, 3e-2)
    nearest = CalibrationOptions.for_method("omniquant", config, preset="fast", rounding="nearest")
    assert nearest.rounding == "nearest"


@pytest.mark.parametrize("method", ["rtn", "smoothquant", "gptq", "awq"])
def test_a_preset_changes_nothing_where_nothing_is_trained(method):
    config = QuantConfig.parse("W4A4")
    fast = CalibrationOptions.for_method(method, config, preset="fast")
    assert fast.epochs == 0
    assert fast == CalibrationOptions.for_method(method, config)


def test_an_unknown_preset_is_refused():
    config = QuantConfig.parse("W4A4")
    with pytest.raises(ConfigError, match="preset 'slow' is not one of default, fast"):
        CalibrationOptions.for_method("omniquant", config, preset="slow")


def test_options_of_before_there_were_plateaus_are_read():
    options = CalibrationOptions.for_method("omniquant", QuantConfig.parse("W4A4"))
    former = {name: value for name, value in options.to_dict().items() if name != "patience"}
    assert CalibrationOptions.from_dict(former) == options


def test_on_the_command_line(tmp_path, capsys):
    arguments = ["quantize", "omniquant-tiny", "--scheme", "W4A4", "--output", str(tmp_path / "out"),
                 "--samples", "2", "--seqlen", "16", "--preset", "fast", "--early-stop", "1", "--lr-lwc", "0",
                 "--lr-let", "0", "--quiet", "--json", "--threads", "1"]  # fmt: skip
    assert main(arguments) == 0
    import json

    found = json.loads(capsys.readouterr().out)
    assert found["options"]["epochs"] == 3
    assert found["options"]["patience"] == 1

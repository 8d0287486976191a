"""Small guards: threads, losses that are no numbers, what a quantized model shows of itself."""

from __future__ import annotations

import pytest
from small_run import small_model, small_tokens

import omniquant
from omniquant.errors import ConfigError, NotFiniteError
from omniquant.memory import peak_rss_mib
from omniquant.report import BlockReport
from omniquant.threads import resolve_threads

CORE = {
    "loss_rtn": 1.0, "loss_initial": 1.0, "loss_final": 0.5, "kept": "final", "steps": 3,
    "rows_projected": 0, "steps_rejected": 0, "sinks": 0, "min_margin": 0.5, "max_condition": float("inf"),
    "varah_bound": 2.0, "worst_row": "", "expert_tokens": [], "trace": [1.0],
}  # fmt: skip


@pytest.mark.parametrize("wish", ["3", "4096"])
def test_threads_follow_the_environment(monkeypatch, wish):
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    assert resolve_threads(None) == int(wish)
    assert resolve_threads(2) == 2


@pytest.mark.parametrize("nonsense", ["", "0", "-1", "two", "4,2", "99999"])
def test_nonsense_in_the_environment_means_every_processor(monkeypatch, nonsense):
    monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
    assert resolve_threads(None) >= 1


@pytest.mark.parametrize("threads", [0, -1, 4097, 1.5, True, "2"])
def test_threads_are_a_number_in_range(threads):
    with pytest.raises(ConfigError, match="threads"):
        resolve_threads(threads)


@pytest.mark.parametrize("name", ["loss_rtn", "loss_initial", "loss_final"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_an_error(name, value):
    with pytest.raises(NotFiniteError, match=f"block 4: {name} is"):
        BlockReport.from_core(4, CORE | {name: value}, 0.0)


def test_a_condition_beyond_all_numbers_is_none():
    report = BlockReport.from_core(4, CORE, 2.5)
    assert (report.max_condition, report.min_margin, report.seconds) == (None, 0.5, 2.5)
    assert BlockReport.from_dict(report.durable(), "there") == BlockReport.from_core(4, CORE, 0.0)


def test_memory_is_measured():
    assert peak_rss_mib() > 10


def test_a_quantized_model_shows_what_the_model_showed(tmp_path):
    model = small_model(tmp_path / "tiny")
    omniquant.calibrate(model, small_tokens(), "W4A8", method="rtn", output=tmp_path / "out", progress=False)
    quantized = omniquant.QuantizedModel.load(tmp_path / "out")
    assert (quantized.name, quantized.options.method, str(quantized.scheme)) == ("tiny", "rtn", "W4A8")
    assert quantized.architecture == model.architecture
    assert quantized.scheme.activation()["bits"] == 8
    assert quantized.state(0).folded["q.codes"].max() < 16
    with pytest.raises(omniquant.DataError, match="takes 1 to 128"):
        quantized.check_seqlen(129)

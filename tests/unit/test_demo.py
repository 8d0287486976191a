"""The demo and its figures, in the smallest size."""

from __future__ import annotations

import builtins
import json
import sys

import numpy as np
import pytest
from small_run import small_model, small_tokens

import omniquant
from omniquant import demo as demo_module
from omniquant.cli import main
from omniquant.demo import CASES, ROWS, DemoRow, plain_table, render, run_demo
from omniquant.errors import UnsupportedError
from omniquant.progress import Callback, MapSnapshots

pytest.importorskip("matplotlib")

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def demo():
    return run_demo(samples=1, epochs=1, max_tokens=1024, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


def without(monkeypatch, name):
    real = builtins.__import__

    def refuse(module, *rest):
        if module.partition(".")[0] == name:
            raise ImportError(name)
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_every_case_has_a_row(demo):
    expected = [(scheme, method) for scheme, methods in CASES for method in methods]
    assert [(row.scheme, row.method) for row in demo.rows] == [("full precision", ""), *expected]
    assert len(demo.rows) == ROWS
    full = demo.rows[0].perplexity
    for row in demo.rows[1:]:
        assert row.ratio == row.perplexity / full > 1
        assert (row.min_margin is not None) == (row.method == "affinequant")
        assert row.min_margin is None or row.min_margin > 0
    hurt = next(row for row in demo.rows if (row.scheme, row.method) == ("W4A4", "rtn"))
    assert hurt.ratio > 1.3  # the outlier channels are there


def test_table_with_and_without_rich(demo, monkeypatch):
    pytest.importorskip("rich")
    assert "affinequant ~" in render(demo.rows)
    without(monkeypatch, "rich")
    lines = render(demo.rows).splitlines()
    assert lines == plain_table(demo.rows).splitlines()
    assert lines[0].split() == ["scheme", "method", "perplexity", "x", "full", "seconds", "margin"]
    assert len(lines) == len(demo.rows) + 1


def test_plots_are_written(demo, tmp_path):
    paths = demo.save_plots(tmp_path / "figures")
    assert [path.name for path in paths] == ["losses.png", "opening.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_plots_without_matplotlib_say_what_to_install(demo, monkeypatch, tmp_path):
    without(monkeypatch, "matplotlib")
    paths, reason = demo_module.plots_or_reason(demo, tmp_path / "figures")
    assert paths == []
    assert "omniquant-c[plots]" in reason
    assert not (tmp_path / "figures").exists()


def test_command_line(capsys, monkeypatch, demo, tmp_path):
    def shown(*, say, **options):
        assert options == {"samples": 2, "epochs": 1, "max_tokens": 512, "seed": 0, "threads": 1}
        say(demo.rows[0])
        return demo

    monkeypatch.setattr(demo_module, "run_demo", shown)
    sizes = ["--samples", "2", "--epochs", "1", "--max-tokens", "512", "--threads", "1"]
    assert main(["demo", "--output", str(tmp_path / "figures"), "--json", *sizes]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert len(data["rows"]) == len(demo.rows)
    assert data["plots"] == [str(tmp_path / "figures" / name) for name in ("losses.png", "opening.png")]
    assert err.startswith("full precision")
    assert main(["demo", "--no-plots", *sizes]) == 0
    assert "fake-quantized" in capsys.readouterr().out
    without(monkeypatch, "matplotlib")
    assert main(["demo", "--output", str(tmp_path / "none"), *sizes]) == 0
    assert "no plots: plots need matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("terminals", "more", "rows"),
    [
        (("stdout", "stderr"), [], 0),
        (("stderr",), [], ROWS),
        (("stdout",), [], ROWS),
        (("stdout", "stderr"), ["--json"], ROWS),
        (("stdout", "stderr"), ["--quiet"], 0),
    ],
)
def test_a_terminal_sees_the_table_once(capsys, monkeypatch, demo, terminals, more, rows):
    def shown(*, say, **options):
        for row in demo.rows:
            say(row)
        return demo

    monkeypatch.setattr(demo_module, "run_demo", shown)
    for name in terminals:
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True, raising=False)
    assert main(["demo", "--no-plots", *more]) == 0
    out, err = capsys.readouterr()
    told = [row for row in demo.rows if "  ".join(filter(None, demo_module.cells(row))) in err]
    assert len(told) == rows
    assert ("step" in err) == (terminals == ("stdout", "stderr") and not more)
    assert "full precision" in out


@pytest.mark.parametrize(("epochs", "panels"), [(1, 1), (2, 2), (3, 3), (20, 5)])
def test_opening_has_a_column_for_each_chosen_epoch(model, epochs, panels):
    from omniquant.plots import plot_opening

    snapshots = MapSnapshots()
    options = {"method": "affinequant", "epochs": epochs, "progress": False, "threads": 1}
    result = omniquant.calibrate(model, small_tokens(1, 4), "W4A4", callbacks=[snapshots], **options)
    figure = plot_opening(result, snapshots)
    masks = [axis for axis in figure.axes if axis.get_title().startswith("mask")]
    assert len(masks) == panels
    open_entries = [axis.images[0].get_array().astype(bool).sum() for axis in masks]
    assert open_entries == sorted(open_entries)
    assert open_entries[-1] == 16  # of 4 x 4: the mask is open at the end
    maps = [axis for axis in figure.axes if axis.get_title().startswith("map after")]
    matrices = [axis.images[0].get_array() for axis in maps]
    for mask, matrix in zip(masks, matrices, strict=True):
        assert (omniquant.dominance_margins(matrix) > 0).all()
        assert not matrix[~mask.images[0].get_array().astype(bool)].any()
    diagonals = {matrix.diagonal().tobytes() for matrix in matrices}
    assert len(diagonals) == panels, "the maps drawn are those of different epochs"


def test_snapshots_end_with_the_learnables_kept(model):
    snapshots = MapSnapshots(block=1, site="vo")
    options = {"method": "affinequant", "epochs": 3, "progress": False, "best_iterate": False}
    result = omniquant.calibrate(model, small_tokens(1, 4), "W3A16", callbacks=[snapshots], **options)
    assert [maps.shape for maps in snapshots.maps] == [snapshots.maps[0].shape] * 3
    assert result.blocks[1].kept == "final"
    np.testing.assert_array_equal(snapshots.maps[-1], result.state(1).learnables["vo.map"])
    assert not np.array_equal(snapshots.maps[0], snapshots.maps[1])


def test_an_exception_of_on_epoch_stops_the_calibration(model):
    class Stop(Callback):
        def on_epoch(self, block, epoch, learnables):
            if epoch == 1:
                raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        omniquant.calibrate(model, small_tokens(1, 4), "W4A4", epochs=3, progress=False, callbacks=[Stop()])


def test_opening_needs_a_full_map(model):
    from omniquant.plots import plot_opening

    snapshots = MapSnapshots()
    result = omniquant.calibrate(
        model, small_tokens(1, 4), "W4A4", method="omniquant", epochs=1, progress=False, callbacks=[snapshots]
    )
    with pytest.raises(UnsupportedError, match="no snapshots of a full affine qk map of block 0"):
        plot_opening(result, snapshots)


def test_losses_of_methods_that_do_not_train_have_no_training_curve(model):
    from omniquant.plots import plot_losses

    result = omniquant.calibrate(model, small_tokens(1, 4), "W4A4", method="rtn", progress=False)
    figure = plot_losses([result])
    assert [len(axis.lines) for axis in figure.axes] == [1, 0]


def test_rows_without_margin_are_told_so():
    row = DemoRow("W4A4", "rtn", 2.0, 1.5, 0.25, None, False)
    assert demo_module.cells(row) == ("W4A4", "rtn", "2.000", "1.500", "0.2", "")

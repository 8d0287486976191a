"""What people see while a calibration runs: a bar on a terminal, a line a block elsewhere."""

from __future__ import annotations

import io

import pytest

from omniquant.progress import BarProgress, Callback, LineProgress, StepEvent, describe, progress_callback
from omniquant.report import BlockReport


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_messages_before_the_start_are_written_too():
    stream = Terminal()
    BarProgress(stream).on_message("block_00000.safetensors: computed again")
    assert stream.getvalue() == "block_00000.safetensors: computed again\n"


def report(index, margin=0.25, kept="final"):
    return BlockReport(index, 0.5, 0.4, 0.125, kept=kept, min_margin=margin, seconds=2.0)


def event(step, margin=0.25):
    return StepEvent(0, 2, step // 4, 2, step, 8, 0.5 / step, margin)


def play(progress, steps=8, margin=0.25):
    progress.on_start(2, 0, steps)
    for index in range(2):
        for step in range(1, steps + 1):
            progress.on_step(event(step, margin))
        progress.on_block(report(index, margin))
    progress.on_message("odd file")
    progress.on_end()


def test_a_line_tells_loss_margin_and_time():
    assert describe(report(0), 2) == "block 1/2: loss 0.4 -> 0.125 (rtn 0.5), margin 0.25, 2.0 s"
    assert describe(report(1, None, "rtn"), 2) == "block 2/2: loss 0.4 -> 0.125 (rtn 0.5), kept rtn, 2.0 s"


def test_lines_for_pipes():
    stream = io.StringIO()
    play(LineProgress(stream))
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["block 1/2", "block 2/2", "odd file"]
    LineProgress(stream).on_start(5, 3, 1)
    assert stream.getvalue().endswith("resuming: 3 of 5 blocks are done\n")


@pytest.mark.parametrize("margin", [0.25, None])
def test_a_bar_for_terminals(monkeypatch, margin):
    monkeypatch.setattr(BarProgress, "REFRESH_SECONDS", 0.0)
    stream = Terminal()
    play(BarProgress(stream), margin=margin)
    text = stream.getvalue()
    assert "block 1/2 epoch 1/2" in text
    assert "loss=0.125" in text
    assert ("margin=0.25" in text) == (margin is not None)
    assert "100%" in text
    assert "odd file" in text


def test_a_bar_counts_blocks_where_nothing_is_trained():
    stream = Terminal()
    play(BarProgress(stream), steps=0)
    assert "100%" in stream.getvalue()


def test_a_bar_that_never_started_ends_quietly():
    BarProgress(Terminal()).on_end()


def test_the_stream_decides():
    assert isinstance(progress_callback(Terminal()), BarProgress)
    assert isinstance(progress_callback(io.StringIO()), LineProgress)


def test_a_callback_may_override_nothing():
    play(Callback())

"""What people see while a calibration runs: a bar on a terminal, a line a block elsewhere."""

from __future__ import annotations

import io

import pytest

from omniquant import progress as progress_module
from omniquant.progress import (
    BarProgress,
    Callback,
    LineProgress,
    NowAndThen,
    StepEvent,
    describe,
    progress_callback,
    rough_duration,
)
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


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ((0.5, 0.5, 0.5), "loss 0.5, 2.0 s"),
        ((0.5, 0.25, 0.25), "loss 0.25 (rtn 0.5), 2.0 s"),
        ((0.5, 0.5, 0.125), "loss 0.5 -> 0.125 (rtn 0.5), 2.0 s"),
    ],
)
def test_equal_losses_are_told_once_where_nothing_is_trained(losses, words):
    assert describe(BlockReport(0, *losses, seconds=2.0), 2) == f"block 1/2: {words}"
    trained = describe(BlockReport(0, 0.5, 0.5, 0.5, steps=8, seconds=2.0), 2)
    assert trained == "block 1/2: loss 0.5 -> 0.5 (rtn 0.5), 2.0 s"


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


class Clock:
    """A clock that goes as told."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def counted_lines(clock, counts):
    """Return what is written of (seconds since the last, done, total)."""
    stream = io.StringIO()
    told = NowAndThen("step", stream)
    for seconds, done, total in counts:
        clock.now += seconds
        told(done, total)
    return stream.getvalue().splitlines()


def test_short_counts_write_nothing(clock):
    assert counted_lines(clock, [(0.9, done, 10) for done in range(1, 11)]) == []
    assert counted_lines(clock, [(20.0, 1, 1)]) == []  # done: nothing is left to wait for


def test_long_counts_write_a_line_every_half_minute(clock):
    assert counted_lines(clock, [(0.5, done, 1200) for done in range(1, 150)]) == [
        "20 of 1200 steps, 0:10 so far, about 10 min left",
        "80 of 1200 steps, 0:40 so far, about 9 min left",
        "140 of 1200 steps, 1:10 so far, about 9 min left",
    ]


def test_the_time_left_is_by_the_last_pace_and_another_count_has_its_own(clock):
    slower = counted_lines(clock, [(1, 1, 9), (11, 2, 9), (100, 3, 9)])
    assert slower == [
        "2 of 9 steps, 0:12 so far, about 42 s left",
        "3 of 9 steps, 1:52 so far, about 10 min left",
    ]
    again = counted_lines(clock, [(3600, 1, 2), (1, 2, 2), (60, 1, 3)])
    assert again == [
        "1 of 2 steps, 1:00:00 so far, about 60 min left",
        "1 of 3 steps, 1:01:01 so far, about 2 min left",
    ]


def test_a_count_of_one_before_another_is_no_part_of_its_pace(clock):
    lines = counted_lines(clock, [(600, 1, 1), (5, 1, 3), (5, 2, 3)])
    assert lines == ["1 of 3 steps, 10:05 so far, about 10 s left"]


def test_durations_for_people():
    assert [rough_duration(s) for s in (1.4, 119.0, 540.0, 9000.0)] == ["1 s", "119 s", "9 min", "2.5 h"]

"""Who is told how a calibration is going: callbacks, and the progress display that is one of them."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from omniquant.report import LEAST_TOKENS, BlockReport

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepEvent:
    """One optimiser step just taken."""

    block: int
    blocks: int
    epoch: int
    epochs: int
    step: int  # since the start of the block, from 1
    steps: int  # of the block in all
    loss: float
    min_margin: float | None  # smallest dominance margin of the affine maps; None without any


class Callback:
    """Override what you need; pass instances as ``calibrate(..., callbacks=[...])``.

    An exception raised here ends the calibration and reaches the caller; finished blocks stay saved.
    """

    def on_start(self, blocks: int, done: int, steps: int) -> None:
        """Before the first block: their number, how many are done already, optimiser steps in each."""

    def on_step(self, event: StepEvent) -> None:
        """After every optimiser step."""

    def on_epoch(self, block: int, epoch: int, learnables: dict[str, F32]) -> None:
        """After every epoch (from 0): copies of the block's learnables, "qk.map", "q.lwc_max", ..."""

    def on_block(self, report: BlockReport) -> None:
        """After a block has been saved."""

    def on_message(self, line: str) -> None:
        """Something worth knowing: a damaged file that is computed again."""

    def on_end(self) -> None:
        """After the last block, or when the calibration stops for any reason."""


class MapSnapshots(Callback):
    """Keep the parameters of one map after each epoch, to draw how it opens.

    Parameters
    ----------
    block : int
    site : {"qk", "vo", "norm1", "norm2", "up_down"}

    Attributes
    ----------
    maps : list of ndarray of float32
        One an epoch of the last calibration, of the shape of the learnable: [heads, d, d] of a full map.
        Empty where the method learns no map there, or the block was finished before that run.
    """

    def __init__(self, block: int = 0, site: str = "qk") -> None:
        self.block, self.site = block, site
        self.maps: list[F32] = []

    def on_start(self, blocks: int, done: int, steps: int) -> None:
        """Forget the calibration before this one."""
        self.maps = []

    def on_epoch(self, block: int, epoch: int, learnables: dict[str, F32]) -> None:
        """Keep the map of the one block."""
        values = learnables.get(f"{self.site}.map")
        if block == self.block and values is not None:
            self.maps.append(values)


def _losses(report: BlockReport) -> str:
    """Return start, what was kept and plain rounding, equal ones once where nothing was trained."""
    rounded = f" (rtn {report.loss_rtn:.4g})"
    if report.steps or report.loss_initial != report.loss_final:
        return f"loss {report.loss_initial:.4g} -> {report.loss_final:.4g}{rounded}"
    return f"loss {report.loss_final:.4g}{'' if report.loss_rtn == report.loss_final else rounded}"


def describe(report: BlockReport, blocks: int) -> str:
    """Return one line about a finished block."""
    margin = "" if report.min_margin is None else f", margin {report.min_margin:.3g}"
    kept = "" if report.kept == "final" else f", kept {report.kept}"
    starved = ""
    if report.starved and report.steps:
        which = ", ".join(str(expert) for expert in report.starved)
        starved = f", experts {which} data-free (fewer than {LEAST_TOKENS} tokens)"
    return (
        f"block {report.index + 1}/{blocks}: {_losses(report)}{margin}{kept}{starved}, {report.seconds:.1f} s"
    )


class LineProgress(Callback):
    """A line a block: for logs and pipes."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream
        self._blocks = 0

    def on_start(self, blocks: int, done: int, steps: int) -> None:
        """Say so when a run is being resumed."""
        self._blocks = blocks
        if done:
            self._write(f"resuming: {done} of {blocks} blocks are done")

    def on_block(self, report: BlockReport) -> None:
        """Write the block's line."""
        self._write(describe(report, self._blocks))

    def on_message(self, line: str) -> None:
        """Write the line."""
        self._write(line)

    def _write(self, line: str) -> None:
        print(line, file=self._stream or sys.stderr, flush=True)


class BarProgress(Callback):
    """A tqdm bar over all optimiser steps: block, epoch, loss, margin, time left."""

    REFRESH_SECONDS = 0.2

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream
        self._bar: Any = None  # tqdm carries no types
        self._blocks = 0
        self._steps = 1
        self._taken = 0
        self._shown_at = -math.inf

    def on_start(self, blocks: int, done: int, steps: int) -> None:
        """Open the bar."""
        from tqdm import tqdm

        self._blocks, self._steps = blocks, max(1, steps)
        self._bar = tqdm(
            total=blocks * self._steps,
            initial=done * self._steps,
            file=self._stream or sys.stderr,
            unit="step",
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
        )

    def on_step(self, event: StepEvent) -> None:
        """Advance, but write to the terminal a few times a second only."""
        self._taken += 1
        self._bar.update(1)
        now = time.monotonic()
        if now - self._shown_at < self.REFRESH_SECONDS:
            return
        self._shown_at = now
        self._bar.set_description_str(
            f"block {event.block + 1}/{event.blocks} epoch {event.epoch + 1}/{event.epochs}", refresh=False
        )
        margin = {} if event.min_margin is None else {"margin": f"{event.min_margin:.3g}"}
        self._bar.set_postfix({"loss": f"{event.loss:.4g}"} | margin, refresh=True)

    def on_block(self, report: BlockReport) -> None:
        """Write the block's line above the bar."""
        self._bar.update(self._steps - self._taken)
        self._taken = 0
        self._bar.write(describe(report, self._blocks), file=self._stream or sys.stderr)

    def on_message(self, line: str) -> None:
        """Write the line above the bar."""
        if self._bar is None:
            print(line, file=self._stream or sys.stderr, flush=True)
        else:
            self._bar.write(line, file=self._stream or sys.stderr)

    def on_end(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class NowAndThen:
    """Lines of a count that takes minutes, for logs and pipes: short runs write none, long ones a few.

    Parameters
    ----------
    unit : str
        What is counted, such as "step".
    stream : file, optional
        None: standard error.
    """

    FIRST_SECONDS, EVERY_SECONDS = 10.0, 30.0

    def __init__(self, unit: str, stream: IO[str] | None = None) -> None:
        self._unit, self._stream = unit, stream
        self._began = self._called_at = self._since = time.monotonic()
        self._done = self._done_then = 0
        self._due = self._began + self.FIRST_SECONDS

    def __call__(self, done: int, total: int) -> None:
        """Take note that so many of the total are done, and write a line if it is time for one."""
        now = time.monotonic()
        if done <= self._done:  # another count begins, at a pace of its own
            self._since, self._done_then = self._called_at, 0
        self._done, self._called_at = done, now
        if now < self._due or not self._done_then < done < total:
            return
        # The pace since the line before: what is counted may take longer in the end than at the beginning.
        left = (now - self._since) / (done - self._done_then) * (total - done)
        so_far = f"{_clock(now - self._began)} so far, about {rough_duration(left)} left"
        print(f"{done} of {total} {self._unit}s, {so_far}", file=self._stream or sys.stderr, flush=True)
        self._since, self._done_then, self._due = now, done, now + self.EVERY_SECONDS


def rough_duration(seconds: float) -> str:
    """Return a duration for people: "45 s", "9 min", "2.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _clock(seconds: float) -> str:
    """Return "1:02" or "1:00:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_callback(stream: IO[str] | None = None) -> Callback:
    """Return a bar for a terminal, a line a block for anything else."""
    target = stream or sys.stderr
    return BarProgress(stream) if target.isatty() else LineProgress(stream)

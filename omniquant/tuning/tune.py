"""Tuning end to end: scales and gains of a quantized model learn together how to predict as the model did.

Calibration rebuilds block after block, each as if those behind it did not matter. Here the codes and zero
points stay, and every scale learns from the Kullback-Leibler divergence of the model's next tokens from those
of full precision: the second phase of EfficientQAT (E2E-QP, arXiv 2407.11062), whose loss is that of the
text. Gains of the norms before linears, floats in any case, learn along. The result's format stays, and so
does what it costs to run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from omniquant.calibration import checked_windows, in_its_basis, windows_digest
from omniquant.config import QuantConfig
from omniquant.errors import ConfigError, DataError
from omniquant.forward import F32, I32, Progress, Steps, passes, run_blocks
from omniquant.manifest import MANIFEST_NAME, Header
from omniquant.memory import DEFAULT_MEMORY, parse_bytes, peak_rss_mib
from omniquant.models.model import Model
from omniquant.quantized import CalibrationResult
from omniquant.state import MemoryStore, StateDirectory, names_in, refuse_foreign
from omniquant.streams import Stream, StreamPool
from omniquant.threads import resolve_threads
from omniquant.tuning.factors import Adam
from omniquant.tuning.interrupted import Interrupted
from omniquant.tuning.record import Tuning
from omniquant.tuning.student import Student

_LEAST = 4  # windows
_ONE_OF = 8  # windows is a judge
_MOST_JUDGES = 8
_WARM_UP = 8  # steps
_KEPT_EVERY = 16  # steps
_NOTHING = 1e-12  # nats: rounding may leave a divergence below zero


def tune(
    result: CalibrationResult,
    model: Model,
    tokens: npt.ArrayLike,
    *,
    epochs: int = 1,
    lr: float | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    threads: int | None = None,
    memory: int | str = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Train scales and norms' gains of a quantized model end to end (E2E-QP, arXiv 2407.11062).

    Parameters
    ----------
    result : CalibrationResult
        Complete, of any scheme and method that rounds weights. It is not changed.
    model : Model
        What it was made from.
    tokens : array_like of int [N, T]
        Windows, at least four. One of eight, eight at most, is not learned from but tells whether it helped:
        if not, all stays as it was.
    epochs : int
        Times through the windows, a step for each.
    lr : float, optional
        Adam's rate for the factors' logarithms, along a cosine to zero. None: 0.003, or 0.001 where weights
        alone are rounded, to 4 bits and more: the smaller the error, the sooner steps are noise.
    seed : int
        Decides the order of windows.
    output : path, optional
        A new directory for the tuned result. On the way, how far it got is kept every 16 steps in a file
        beside it, DIR.tuning. None: the result stays in memory.
    resume : bool
        Go on from DIR.tuning, or with a directory not yet whole; the result is bit-identical to that of an
        uninterrupted run.
    threads : int, optional
        None: all processors this process may use. The result does not depend on it.
    memory : int or str
        What the model's last hidden states of all windows may take in memory; beyond it they lie in a file.
    progress : callable, optional
        Called with (steps done, steps): blocks of the model, windows of the result.

    Returns
    -------
    CalibrationResult
        ``header.tuning`` tells how it was tuned, and the divergence on the judges before and after.

    Raises
    ------
    ConfigError
        If the result is of another model or rounds no weights, or a number makes no sense.
    DataError
        If there are fewer than four windows, or they lie outside the vocabulary.
    CheckpointError
        If the output holds something or cannot be written, or what is to be resumed is of another run.
    NotFiniteError
        If the divergence is NaN or infinite.
    """
    rate = _usual_rate(result.scheme) if lr is None else lr
    _check_numbers(epochs, rate, seed)
    quantized = result.fold()
    basis = in_its_basis(model, result.scheme, result.options)
    made, given = str(result.header.model["fingerprint"]), basis.fingerprint()
    if made != given:
        raise ConfigError(
            f"the result was made from {result.header.model['name']} ({made[:12]}), "
            f"not from {model.name} ({given[:12]})"
        )
    if not result.scheme.quantizes_weights:
        raise ConfigError(f"scheme {result.scheme} rounds no weights, so there are no scales to tune")
    windows = checked_windows(tokens, model)
    wish = _Wish(windows, epochs, rate, seed)
    place = None if output is None else Path(output)
    asked = replace(result.header, tuning=wish.record(0, 0))
    whole = None if place is None else _whole(place, asked, basis, resume)
    workers = resolve_threads(threads)
    student = Student(quantized, model, workers)
    kept = Interrupted.open(place, wish.identity(student.digest()), resume=resume)
    if whole is not None:
        kept.forget()
        return whole
    parts = passes(model, windows)
    steps = Steps(progress, len(parts) * model.num_layers + wish.steps + 2 * len(wish.judges))
    scratch = Path(tempfile.gettempdir()) if place is None else place.parent
    shape = (*windows.shape, model.spec.hidden_size)
    with StreamPool(shape, 1, parse_bytes("memory", memory), scratch, lambda line: None) as pool:
        reference = pool.take()
        _write_states(reference, model, parts, workers, steps)
        tuning = _Run(student, reference.array, wish, kept, steps).whole()
    header = replace(result.header, tuning=tuning)
    store = MemoryStore()
    for report in result.blocks:
        store.put(report.index, student.state(report.index), report)
    tuned = CalibrationResult(header, store, basis, result.seconds, max(result.peak_rss_mib, peak_rss_mib()))
    if place is None:
        return tuned
    tuned.save(place, resume=resume)
    kept.forget()
    return CalibrationResult.load(place)


def _whole(place: Path, header: Header, basis: Model, resume: bool) -> CalibrationResult | None:
    """Return what an earlier run has left in its output, if all of it is there and verifies.

    CheckpointError, before hours of training, of anything but this run's, and of all where none is resumed.
    """
    if not resume or MANIFEST_NAME not in names_in(place):
        refuse_foreign(place)
        return None
    made = StateDirectory.open(place).header.tuning
    if made is not None and header.tuning is not None:  # what comes of it this run does not know yet
        known = replace(header.tuning, kl_before=made.kl_before, kl_after=made.kl_after)
        header = replace(header, tuning=known)
    state = StateDirectory.resume(place, header, basis)
    done = all(state.finished(index) for index in range(header.num_layers))
    return CalibrationResult.load(place) if done else None


def _write_states(reference: Stream, model: Model, parts: list[I32], threads: int, steps: Steps) -> None:
    """Fill a stream with the model's hidden states behind its last block."""
    done = 0
    for part in parts:
        states = run_blocks(model, part, threads=threads, steps=steps)
        reference.write(slice(done, done + len(part)), states)
        done += len(part)


def _usual_rate(scheme: QuantConfig) -> float:
    return 1e-3 if scheme.weight_only and scheme.w_bits >= 4 else 3e-3


def _check_numbers(epochs: int, lr: float, seed: int) -> None:
    if not 1 <= epochs <= 1_000_000:
        raise ConfigError(f"epochs is {epochs}, expected 1 to 1000000")
    if not 0 < lr <= 1:
        raise ConfigError(f"lr is {lr}, expected more than 0, at most 1")
    if not 0 <= seed < 2**31:
        raise ConfigError(f"seed is {seed}, expected 0 to 2^31 - 1")


class _Wish:
    """What was asked for: the windows, which of them judge, and the order of the others."""

    def __init__(self, windows: I32, epochs: int, lr: float, seed: int) -> None:
        count = len(windows)
        if count < _LEAST:
            raise DataError(f"{count} windows, tuning needs at least {_LEAST}: some learn, some judge")
        judges = min(_MOST_JUDGES, -(-count // _ONE_OF))
        self.windows, self.epochs, self.lr, self.seed = windows, epochs, lr, seed
        self.digest = windows_digest(windows)
        self.judges = [i * count // judges for i in range(judges)]
        self._learners = np.setdiff1d(np.arange(count), self.judges)

    @property
    def steps(self) -> int:
        """In all."""
        return self.epochs * len(self._learners)

    def window(self, step: int) -> int:
        """Return which window a step learns from."""
        epoch, place = divmod(step, len(self._learners))
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self._learners)
        return int(order[place])

    def rate(self, step: int) -> float:
        """Return Adam's rate: up over eight steps, then along a cosine."""
        return self.lr * min(1, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def record(self, before: float, after: float) -> Tuning:
        """Return what a manifest will say, with the judges' divergence."""
        samples, seqlen = self.windows.shape
        return Tuning(
            self.epochs, self.lr, self.seed, samples, seqlen, len(self.judges), self.digest, before, after
        )

    def identity(self, digest: str) -> str:
        """Return what two runs have in common that compute the same, from a result of that digest."""
        facts = [digest, self.epochs, self.lr, self.seed, self.digest]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass
class _Run:
    """One call of :func:`tune`."""

    student: Student
    reference: F32  # [N, T, H]
    wish: _Wish
    kept: Interrupted
    steps: Steps

    def whole(self) -> Tuning:
        """Train, judge, and leave the student at the better of its two ends."""
        wish, factors = self.wish, self.student.factors
        adam = Adam(factors.theta.size)
        before = self.kept.restore(factors, adam)
        for _ in range(adam.steps):
            self.steps()
        before = self._judge() if before is None else before
        for step in range(adam.steps, wish.steps):
            window = wish.window(step)
            _, dtheta = self.student.gradients(wish.windows[window], self.reference[window])
            adam.step(factors.theta, dtheta, wish.rate(step))
            self.steps()
            if adam.steps % _KEPT_EVERY == 0 or adam.steps == wish.steps:
                self.kept.keep(factors, adam, before)
        after = self._judge()
        if not after < before:
            factors.theta[:] = 0
        return wish.record(before, after)

    def _judge(self) -> float:
        found = []
        for index in self.wish.judges:
            found.append(self.student.divergence(self.wish.windows[index], self.reference[index]))
            self.steps()
        return max(float(np.mean(found)), _NOTHING)

"""The one loop: calibration in the core block after block, on two streams of activations.

tokens -> embed -> x_fp = x_q, then for every block:

    core.calibrate_block(x_fp, x_q) -> targets = block(x_fp), and the block, kept durably
    x_fp = targets
    x_q = block of the folded weights(x_q)
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.blockfile import BlockState, dequantized, row_codes
from omniquant.checkpoint.finite import check_finite
from omniquant.config import CalibrationOptions, QuantConfig, core_options
from omniquant.config.overrides import Overrides
from omniquant.config.scheme import FLOAT_BITS
from omniquant.errors import ConfigError, DataError, OmniQuantError
from omniquant.forward import I32, Activation, Weights, as_windows, block_parts, chunks, rope_or_empty
from omniquant.manifest import MANIFEST_NAME, Header, Manifest
from omniquant.memory import DEFAULT_MEMORY, parse_bytes, peak_rss_mib
from omniquant.mixed.allocation import CANDIDATE_BITS
from omniquant.mixed.plan import Wishes, mixed_scheme
from omniquant.models.adapter import Architecture
from omniquant.models.model import Model
from omniquant.models.rotated import RotatedModel, Rotation
from omniquant.models.rounded_ends import RoundedEnds
from omniquant.permits import permits_online
from omniquant.progress import Callback, StepEvent, progress_callback
from omniquant.quantized import CalibrationResult
from omniquant.report import BlockReport
from omniquant.state import MemoryStore, StateDirectory
from omniquant.streams import Stream, StreamPool
from omniquant.threads import resolve_threads


def calibrate(
    model: Model,
    tokens: npt.ArrayLike,
    config: QuantConfig | str,
    *,
    method: str | CalibrationOptions = "omniquant",
    overrides: Overrides = (),
    average_bits: float | None = None,
    candidate_bits: Sequence[int] = CANDIDATE_BITS,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    threads: int | None = None,
    memory: int | str = DEFAULT_MEMORY,
    scratch: str | os.PathLike[str] | None = None,
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
    **options: Any,
) -> CalibrationResult:
    """Quantize a model block by block (OmniQuant, arXiv 2308.13137; AffineQuant, arXiv 2403.12544).

    Parameters
    ----------
    model : Model
        From :func:`omniquant.load_model`; it is never changed.
    tokens : array_like of int [N, T]
        Calibration windows.
    config : QuantConfig or str
        The scheme, such as "W4A4" or "W2A16g64".
    method : str or CalibrationOptions
        "rtn", "smoothquant", "gptq", "awq", "omniquant" or "affinequant", with the papers' defaults; "auto",
        what measured best for the scheme; or every option made.
    overrides : mapping of str to scheme, or iterable of "PATTERN=SCHEME"
        Other schemes for linears, by patterns of their names ("layers.0.*", "model.layers.*.mlp.down_proj");
        the last match counts. "float" skips them. Q, K and V are always `config`'s.
    average_bits : float, optional
        Choose the bits of every other linear, at most so many a weight on average, by what each costs on the
        calibration tokens: :func:`omniquant.mixed.allocate`.
    candidate_bits : sequence of int
        What is chosen from.
    output : path, optional
        A directory that gets each block the moment it is done. None: the result stays in memory.
    resume : bool
        Go on with what `output` holds; the result is bit-identical to that of an uninterrupted run.
    threads : int, optional
        None: all processors this process may use. The result does not depend on it.
    memory : int or str
        What the activations of all windows may take in memory, in bytes or as "4GiB"; if they need more they
        lie in files, mapped a few windows at a time. The result does not depend on it.
    scratch : path, optional
        The directory of those files. None: `output`, or the system's temporary directory without one.
    progress : bool
        Show a bar (or, without a terminal, a line a block) on standard error.
    callbacks : iterable of Callback
        Told of every step and block. An exception of theirs stops the calibration; finished blocks are kept.
    **options
        Fields of :class:`CalibrationOptions` other than their defaults: epochs, seed, loss, norm_map, ...;
        and preset, "fast" for few epochs at high rates, with learned rounding.

    Returns
    -------
    CalibrationResult

    Raises
    ------
    ConfigError
        If scheme, method and options do not fit together or the model.
    ScratchError
        If the activations do not fit in memory nor on the disk of `scratch`; finished blocks are kept.
    DataError
        If the tokens are no windows, or outside the vocabulary.
    NotFiniteError
        If a weight or a loss is NaN or infinite; names block, tensor, row and column, or epoch and step.
    CheckpointError
        If `output` cannot be written, or holds another calibration.
    """
    scheme = QuantConfig.parse(config) if isinstance(config, str) else config
    windows = checked_windows(tokens, model)
    chosen = choose_options(method, scheme, model.architecture, options, len(windows))
    wishes = Wishes.of(overrides, average_bits, candidate_bits)
    model = in_its_basis(model, scheme, chosen)
    if resume and output is None:
        raise ConfigError("resume needs an output directory to go on with")
    place = _Place(parse_bytes("memory", memory), Path(scratch or output or tempfile.gettempdir()))
    with ExitStack() as stack:
        listeners = [*callbacks, *([progress_callback()] if progress else [])]
        for listener in listeners:
            stack.callback(listener.on_end)
        workers = resolve_threads(threads)
        begun = _begun(Path(output)) if resume and output is not None else None
        scheme, allocation = mixed_scheme(
            model,
            windows,
            scheme,
            wishes,
            known=None if begun is None else begun.allocation,
            threads=workers,
            check=partial(_foresee_exports, chosen, model, begun is None, partial(_tell, listeners)),
            say=partial(_tell, listeners),
        )
        fastest = _core.runtime_info()
        chosen = chosen.with_products(scheme, fastest["products"], fastest["gradients"])
        run = _Run(model, _read(windows, model, chosen), scheme, chosen, workers, place, listeners)
        header = replace(_header(model, windows, scheme, chosen), allocation=allocation)
        if output is None:
            return run.in_memory(header)
        return run.in_directory(_open(Path(output), header, model, resume, run.say))


def in_its_basis(model: Model, scheme: QuantConfig, options: CalibrationOptions) -> Model:
    """Return the model as the options calibrate it: rotated, its ends rounded, where they ask for it."""
    rotation = Rotation.of(options, scheme)
    if rotation is not None:
        model = RotatedModel(model, rotation)
    if min(options.embedding_bits, options.head_bits) < FLOAT_BITS:
        model = RoundedEnds(model, options.embedding_bits, options.head_bits)
    return model


def _foresee_exports(
    options: CalibrationOptions, model: Model, new: bool, say: Callable[[str], None], scheme: QuantConfig
) -> None:
    """Refuse a scheme that the options' target cannot hold, and say, once, what exporting will lack."""
    grouped = new and any(each.group_size for each in scheme.schemes)
    if options.target != "any" or grouped:
        # Imported late: only who names a format or groups needs their table.
        from omniquant.export.foreseen import foresee

        foresee(scheme, options, model, say)


def _begun(folder: Path) -> Header | None:
    """Return what the calibration that is resumed is of; None where nothing was begun."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    return Manifest.read(folder).header


def _tell(listeners: Iterable[Callback], line: str) -> None:
    for listener in listeners:
        listener.on_message(line)


def choose_options(
    method: str | CalibrationOptions,
    scheme: QuantConfig,
    architecture: Architecture,
    options: dict[str, Any],
    samples: int,
) -> CalibrationOptions:
    """Return a method's options, "auto" knowing blocks and windows; ConfigError."""
    if isinstance(method, str):
        online, search = permits_online(architecture), not architecture.spec.num_experts
        return CalibrationOptions.for_method(
            method, scheme, online=online, search=search, samples=samples, **options
        )
    try:
        return replace(method, **options)
    except TypeError as error:
        raise ConfigError(f"options: {error}") from None


def checked_windows(tokens: npt.ArrayLike, model: Model) -> I32:
    """Return windows [N, T] that the model takes; DataError."""
    if np.ndim(tokens) != 2:
        raise DataError(f"calibration tokens must be windows [N, T], got {np.ndim(tokens)} dimensions")
    windows = as_windows(tokens, model.vocab_size)
    model.check_seqlen(windows.shape[1])
    return windows


def windows_digest(windows: I32) -> str:
    """Return the sha256 of windows [N, T] and their shape."""
    return hashlib.sha256(repr(windows.shape).encode() + windows.astype("<i4").tobytes()).hexdigest()


def _read(windows: I32, model: Model, options: CalibrationOptions) -> I32:
    """Return the windows that have a part in the result: of plain rounding those that tell its losses."""
    if options.method != "rtn" or options.sinks == "out" or model.spec.num_experts:
        return windows
    return windows[_core.judges(*windows.shape)]


def _header(model: Model, windows: I32, scheme: QuantConfig, options: CalibrationOptions) -> Header:
    about = {
        "name": model.name,
        "source": model.source,
        "fingerprint": model.fingerprint(),
        "num_layers": model.num_layers,
        "vocab_size": model.vocab_size,
        "spec": model.spec.to_core(),
    }
    data = {"samples": windows.shape[0], "seqlen": windows.shape[1], "tokens_sha256": windows_digest(windows)}
    return Header(scheme, options, about, data)


def _open(
    folder: Path, header: Header, model: Model, resume: bool, say: Callable[[str], None]
) -> StateDirectory:
    if resume:
        return StateDirectory.resume(folder, header, model, say)
    return StateDirectory.create(folder, header, model)


@dataclass
class _Streams:
    """The two activations that travel through the blocks, and others of their size."""

    pool: StreamPool
    full: Stream
    quantized: Stream
    goal: Stream | None = None  # the full-precision one behind the last block the loss looks through


@dataclass(frozen=True)
class _Place:
    """Bytes the activations may take in memory, and the directory they go to beyond that."""

    memory: int
    scratch: Path


@dataclass
class _Run:
    """One call of :func:`calibrate`."""

    model: Model
    windows: I32
    scheme: QuantConfig
    options: CalibrationOptions
    threads: int
    place: _Place
    listeners: list[Callback]

    def say(self, line: str) -> None:
        """Tell the listeners something worth knowing."""
        _tell(self.listeners, line)

    @property
    def steps(self) -> int:
        """Optimiser steps a block."""
        return self.options.epochs * -(-len(self.windows) // self.options.batch_size)

    def start(self, done: int) -> None:
        """Tell the listeners that the first block begins."""
        for listener in self.listeners:
            listener.on_start(self.model.num_layers, done, self.steps)

    def finish(self, report: BlockReport) -> None:
        """Tell the listeners that a block is done and kept."""
        for listener in self.listeners:
            listener.on_block(report)

    def in_memory(self, header: Header) -> CalibrationResult:
        """Calibrate every block; nothing is written."""
        started = time.monotonic()
        store = MemoryStore()
        with self.pool() as pool:
            self.start(0)
            streams = self.embed(pool)
            for index in range(self.model.num_layers):
                self.compute(index, streams, store)
        return CalibrationResult(header, store, self.model, time.monotonic() - started, peak_rss_mib())

    def in_directory(self, directory: StateDirectory) -> CalibrationResult:
        """Calibrate the blocks a directory lacks; blocks it has are only run through."""
        started = time.monotonic()
        layers = self.model.num_layers
        missing = {index for index in range(layers) if not directory.finished(index, self.say)}
        self.start(layers - len(missing))
        if missing:
            with _keeping(directory), self.pool() as pool:
                self._fill(directory, missing, self.embed(pool))
            # A resumed run counts the blocks of the runs before it.
            seconds = max(time.monotonic() - started, sum(report.seconds for report in directory.reports()))
            directory.write_run(seconds=round(seconds, 3), peak_rss_mib=peak_rss_mib(), threads=self.threads)
        return CalibrationResult(directory.header, directory, directory.outer(), *directory.run_facts())

    def _fill(self, directory: StateDirectory, missing: set[int], streams: _Streams) -> None:
        for index in range(self.model.num_layers):
            # A block computed again may come out otherwise (another machine): those behind it are then gone.
            if index in missing or index >= len(directory.manifest.blocks):
                self.compute(index, streams, directory)
                directory.write_run(threads=self.threads)
            elif index < max(missing):
                self.pass_through(index, directory.get(index), streams)

    @property
    def augmented(self) -> bool:
        """Whether training also matches the original block on the quantized stream."""
        return self.options.aug_loss and self.options.trains

    def pool(self) -> StreamPool:
        """Return a pool of the streams needed at a time: both that travel, and one to three targets."""
        shape = (*self.windows.shape, self.model.spec.hidden_size)
        wanted = 3 + self.augmented + (self.options.look_ahead > 0)
        return StreamPool(shape, wanted, self.place.memory, self.place.scratch, self.say)

    def embed(self, pool: StreamPool) -> _Streams:
        """Return the activations into the first block."""
        stream = pool.take()
        for part in chunks(*self.windows.shape):
            stream.write(part, self.model.embed(self.windows[part]))
        return _Streams(pool, stream, stream)

    def _through(
        self,
        index: int,
        weights: Weights,
        source: Stream,
        target: Stream,
        activation: Activation | None = None,
        codes: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        """Run a stream through a block into another, or into itself; products as in the core's passes."""
        parts = block_parts(
            self.model,
            index,
            weights,
            source.array,
            activation=activation,
            in_parts=self.options.products == "bfloat16",
            codes=codes,
            threads=self.threads,
        )
        for part, y in parts:
            target.write(part, y)
            source.drop(part)

    def pass_through(self, index: int, state: BlockState, streams: _Streams) -> None:
        """Move both activations behind a block that is done."""
        full = streams.pool.take()
        self._through(index, self.model.block(index), streams.full, full)
        self._advance(index, state, full, streams)

    def _advance(self, index: int, state: BlockState, full: Stream, streams: _Streams) -> None:
        if streams.full is not streams.quantized:  # before the first block both are one
            streams.pool.give_back(streams.full)
        streams.full = full
        weights = dequantized(state.folded, self.scheme.block(index))
        activation = self.scheme.activation(index)
        codes = None if self.options.products == "float32" else row_codes(state.folded)
        self._through(index, weights, streams.quantized, streams.quantized, activation, codes)

    def compute(self, index: int, streams: _Streams, store: MemoryStore | StateDirectory) -> None:
        """Calibrate one block, keep it, and move both activations behind it."""
        started = time.monotonic()
        weights = self.model.block(index)
        for name, values in weights.items():
            check_finite(f"{self.model.name}: block {index}: {name}", values)
        targets = streams.pool.take()
        result = self._calibrate_block(index, weights, streams, targets)
        del weights
        # Offsets of the rounding are as many as weights, and what they decided is in the codes.
        learned = {name: v for name, v in result["learnables"].items() if not name.endswith(".offset")}
        state = BlockState(dict(result["folded"]), learned)
        report = BlockReport.from_core(index, result, time.monotonic() - started)
        store.put(index, state, report)
        self.finish(report)
        if index + 1 < self.model.num_layers:
            self._advance(index, state, targets, streams)

    def _calibrate_block(
        self, index: int, weights: Weights, streams: _Streams, targets: Stream
    ) -> dict[str, Any]:
        spec = self.model.spec_of(index)
        length = self.windows.shape[1]
        cos, sin = rope_or_empty(self.model, length, index)
        aug = None
        if self.augmented:
            aug = targets
            if streams.quantized is not streams.full:  # else both targets are one
                aug = streams.pool.take()
                self._through(index, weights, streams.quantized, aug)
        behind = self._look_ahead(index, streams)
        result: dict[str, Any] = _core.calibrate_block(
            spec.to_core(),
            weights,
            streams.full.array,
            streams.quantized.array,
            targets.array,
            None if aug is None else aug.array,
            cos,
            sin,
            core_options(self.scheme, self.options, block=index, **spec.map_facts()),
            on_step=self._on_step(index) if self.listeners else None,
            on_epoch=self._on_epoch(index),
            goals=streams.goal.array if behind and streams.goal else None,
            followers=behind or None,
            on_target=lambda window, y: targets.write(slice(window, window + 1), y[None]),
            mapped=targets.mapped,
            threads=self.threads,
        )
        if aug is not None and aug is not targets:
            streams.pool.give_back(aug)
        return result

    def _look_ahead(self, index: int, streams: _Streams) -> list[tuple[Any, ...]]:
        """Return the blocks the loss looks through, having moved the goal behind the last of them."""
        last, layers = index + self.options.look_ahead, self.model.num_layers
        if not self.options.trains or last == index or index + 1 >= layers:
            return []
        behind = {each: self._follower(each) for each in range(index + 1, min(last + 1, layers))}
        passed = [each for each in behind if each == last]
        if streams.goal is None:
            streams.goal = streams.pool.take()
            self._through(index, self.model.block(index), streams.full, streams.goal)
            passed = list(behind)
        for each in passed:
            self._through(each, behind[each][1], streams.goal, streams.goal)
        return list(behind.values())

    def _follower(self, index: int) -> tuple[Any, ...]:
        """Return a block as the core looks through it: spec, weights, cosines and sines."""
        rope = rope_or_empty(self.model, self.windows.shape[1], index)
        return self.model.spec_of(index).to_core(), self.model.block(index), *rope

    def _on_step(self, index: int) -> Callable[[int, int, float, float], None]:
        taken = 0

        def on_step(epoch: int, step: int, loss: float, min_margin: float) -> None:
            nonlocal taken
            taken += 1
            margin = None if min_margin != min_margin else min_margin  # NaN: no affine map
            event = StepEvent(
                index, self.model.num_layers, epoch, self.options.epochs, taken, self.steps, loss, margin
            )
            for listener in self.listeners:
                listener.on_step(event)

        return on_step

    def _on_epoch(self, index: int) -> Callable[[int, Weights], None] | None:
        told = [each for each in self.listeners if type(each).on_epoch is not Callback.on_epoch]

        def on_epoch(epoch: int, learnables: Weights) -> None:
            for listener in told:
                listener.on_epoch(index, epoch, learnables)

        return on_epoch if told else None


@contextmanager
def _keeping(directory: StateDirectory) -> Iterator[None]:
    """Say, when a block fails or cannot be saved, how many are safe."""
    try:
        yield
    except OmniQuantError as error:
        done = len(directory.manifest.blocks)
        raise type(error)(f"{error}; {done} finished blocks are kept, go on with --resume") from error

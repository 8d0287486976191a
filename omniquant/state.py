"""Where finished blocks live: in memory, or in a directory that survives a kill at any moment.

    DIR/
      manifest.json             whose result this is, the checksum of every file, the report of every block
      block_00000.safetensors   one file a block, durable the moment the block is done
      outer.safetensors config.json tokenizer.json text.json    what lies outside the blocks, unquantized
      run.json                  seconds and memory: the only file that depends on the clock

A file becomes visible complete or not at all. The manifest names a block only after its file is in place, so
a killed run loses the block it was working on and nothing else. A file whose checksum does not match is an
error for readers; a resumed run computes it again and says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from omniquant._version import __version__
from omniquant.blockfile import Array, BlockState, from_bytes, tensors_from_bytes, to_tensors
from omniquant.checkpoint.atomic import atomic_save_safetensors, atomic_write_bytes, temporary_of
from omniquant.checkpoint.json_file import read_json_object
from omniquant.checkpoint.text import one_line
from omniquant.config import QuantConfig
from omniquant.config.scheme import BlockScheme
from omniquant.errors import CheckpointError
from omniquant.manifest import MANIFEST_NAME, BlockEntry, FileEntry, Header, Manifest
from omniquant.models.model import Model
from omniquant.models.rotated import Rotation
from omniquant.models.spec import BlockSpec
from omniquant.outer import CONFIG_NAME, OUTER_NAME, TEXT_NAME, TOKENIZER_NAME, StoredOuter, save_outer
from omniquant.report import BlockReport
from omniquant.streams import is_scratch

RUN_NAME = "run.json"

_OWN_NAMES = (CONFIG_NAME, OUTER_NAME, TEXT_NAME, TOKENIZER_NAME, RUN_NAME, MANIFEST_NAME)
_BLOCK = re.compile(r"block_\d{5,}\.safetensors")


class BlockStore(Protocol):
    """Finished blocks, by index."""

    def reports(self) -> list[BlockReport]:
        """Return the reports of the finished blocks, from the first on."""

    def get(self, index: int) -> BlockState:
        """Return a finished block."""

    def tensors(self, index: int, scheme: BlockScheme) -> dict[str, Array]:
        """Return a finished block as it is stored: codes as bit streams."""


class MemoryStore:
    """Blocks of a calibration that nobody asked to keep on disk."""

    def __init__(self) -> None:
        self._blocks: list[tuple[BlockState, BlockReport]] = []

    def put(self, index: int, state: BlockState, report: BlockReport) -> None:
        """Add the next block."""
        if index != len(self._blocks):
            raise ValueError(f"block {index} does not follow block {len(self._blocks) - 1}")
        self._blocks.append((state, report))

    def reports(self) -> list[BlockReport]:
        """Return the reports of the finished blocks."""
        return [report for _, report in self._blocks]

    def get(self, index: int) -> BlockState:
        """Return a finished block."""
        return self._blocks[index][0]

    def tensors(self, index: int, scheme: BlockScheme) -> dict[str, Array]:
        """Return a finished block as it would be stored: codes as bit streams."""
        return to_tensors(self._blocks[index][0], scheme)


def block_name(index: int) -> str:
    """Return the file name of a block."""
    return f"block_{index:05d}.safetensors"


class StateDirectory:
    """A result directory; make one with :meth:`create`, open one with :meth:`open`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._spec = _read_spec(manifest.header, folder)
        self._seconds, self._facts = _read_run(folder)

    @classmethod
    def create(cls, folder: Path, header: Header, model: Model) -> StateDirectory:
        """Start a result directory: everything but the blocks is written, durably.

        Raises
        ------
        CheckpointError
            If it holds something already, or cannot be written; then nothing new is left behind.
        """
        refuse_foreign(folder)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        existing = set() if made else {path.name for path in folder.iterdir()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_litter(folder)
            names = save_outer(model, folder)
            manifest = Manifest(header, tuple(FileEntry.of(folder / name) for name in names))
            manifest.write(folder)
        except BaseException as error:
            _undo(folder, made, existing)
            if isinstance(error, OSError):
                raise CheckpointError(f"{folder}: cannot write: {one_line(error)}") from error
            raise
        return cls(folder, manifest)

    @classmethod
    def open(cls, folder: Path) -> StateDirectory:
        """Open a result directory, finished or not; CheckpointError if it is none or is damaged."""
        if not (folder / MANIFEST_NAME).is_file():
            raise CheckpointError(f"{folder}: no {MANIFEST_NAME}, so no result of omniquant quantize")
        return cls(folder, Manifest.read(folder))

    @classmethod
    def resume(
        cls, folder: Path, header: Header, model: Model, say: Callable[[str], None] = lambda line: None
    ) -> StateDirectory:
        """Open a directory to go on with its calibration; a new or empty one is started.

        Raises
        ------
        CheckpointError
            If it belongs to another scheme, method, option, model or data: the first difference is named.
        """
        if not (folder / MANIFEST_NAME).exists():
            say(f"{folder}: nothing to resume, a new run")
            return cls.create(folder, header, model)
        state = cls.open(folder)
        difference = state.manifest.header.difference(header)
        if difference is not None:
            raise CheckpointError(f"{folder}: cannot be resumed: it was made with {difference}")
        _remove_litter(folder)
        for entry in state.manifest.files:
            problem = state.problem(entry)
            if problem is not None:
                say(f"{problem}: written again")
                state._rewrite_outer(model)
                break
        return state

    def _rewrite_outer(self, model: Model) -> None:
        names = save_outer(model, self.folder)
        self.manifest = replace(
            self.manifest, files=tuple(FileEntry.of(self.folder / name) for name in names)
        )
        self.manifest.write(self.folder)

    @property
    def header(self) -> Header:
        """Whose result this is."""
        return self.manifest.header

    @property
    def scheme(self) -> QuantConfig:
        """The quantization scheme."""
        return self.manifest.header.scheme

    def problem(self, entry: FileEntry) -> str | None:
        """Return what is wrong with a file of the directory, None if it is as it was written."""
        try:
            self._read(entry)
        except CheckpointError as error:
            return str(error)
        return None

    def finished(self, index: int, say: Callable[[str], None] = lambda line: None) -> bool:
        """Tell whether a block is done and its file verifies; `say` hears why a listed file does not."""
        if index >= len(self.manifest.blocks):
            return False
        problem = self.problem(self.manifest.blocks[index].file)
        if problem is not None:
            say(f"{problem}; the block is computed again")
        return problem is None

    def put(self, index: int, state: BlockState, report: BlockReport) -> None:
        """Make a finished block durable."""
        path = self.folder / block_name(index)
        atomic_save_safetensors(
            path, to_tensors(state, self.scheme.block(index)), {"format": "omniquant-block", "version": "1"}
        )
        entry = BlockEntry(FileEntry.of(path), replace(report, seconds=0.0))
        self.manifest = self.manifest.with_block(index, entry)
        self.manifest.write(self.folder)
        self._seconds[index] = report.seconds

    def get(self, index: int) -> BlockState:
        """Return a finished block.

        Raises
        ------
        CheckpointError
            Naming file and tensor, if it is missing, damaged or was never finished.
        """
        entry = self._entry(index)
        where = str(self.folder / entry.file)
        return from_bytes(self._read(entry), self._spec, self.scheme.block(index), where)

    def tensors(self, index: int, scheme: BlockScheme) -> dict[str, Array]:
        """Return a finished block as it is stored: codes as bit streams; errors as :meth:`get`."""
        entry = self._entry(index)
        return tensors_from_bytes(self._read(entry), self._spec, scheme, str(self.folder / entry.file))

    def _entry(self, index: int) -> FileEntry:
        if not 0 <= index < len(self.manifest.blocks):
            raise CheckpointError(f"{self.folder}: block {index} is not finished; continue with --resume")
        return self.manifest.blocks[index].file

    def _read(self, entry: FileEntry) -> bytes:
        path = self.folder / entry.file
        try:
            size = path.stat().st_size  # before reading: the file may be anything by now
            if size != entry.bytes:
                raise CheckpointError(f"{path}: has {size} bytes, {MANIFEST_NAME} says {entry.bytes}")
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read: {one_line(error)}") from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CheckpointError(f"{path}: sha256 does not match {MANIFEST_NAME}: the file is damaged")
        return data

    def outer(self) -> StoredOuter:
        """Return what lies outside the blocks, after checking those files."""
        for entry in self.manifest.files:
            self._read(entry)
        rotation = Rotation.of(self.header.options, self.scheme)
        return StoredOuter(self.folder, str(self.header.model["name"]), rotation)

    def reports(self) -> list[BlockReport]:
        """Return the reports of the finished blocks, with the seconds each took where run.json knows them."""
        return [
            replace(entry.report, seconds=self._seconds.get(index, 0.0))
            for index, entry in enumerate(self.manifest.blocks)
        ]

    def run_facts(self) -> tuple[float, float]:
        """Return the seconds and the peak memory (MiB) of the calibration; 0 where run.json does not say."""
        return self._facts.get("seconds", 0.0), self._facts.get("peak_rss_mib", 0.0)

    def write_run(self, **facts: float) -> None:
        """Note what depends on the clock or the machine: seconds of each block and `facts`."""
        self._facts |= facts
        seconds = {str(index): round(value, 3) for index, value in sorted(self._seconds.items())}
        body = {"omniquant": __version__, **self._facts, "seconds_of_block": seconds}
        atomic_write_bytes(self.folder / RUN_NAME, json.dumps(body, indent=1).encode() + b"\n")


def _read_spec(header: Header, folder: Path) -> BlockSpec:
    try:
        return BlockSpec(**header.model["spec"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / MANIFEST_NAME}: model: spec: {one_line(error)}") from error


def _read_run(folder: Path) -> tuple[dict[int, float], dict[str, float]]:
    """Return seconds a block and other facts of earlier runs; they are for people: damage is no error."""
    try:
        values = read_json_object(folder / RUN_NAME)
    except CheckpointError:
        return {}, {}
    seconds = values.pop("seconds_of_block", None)
    items = seconds.items() if isinstance(seconds, dict) else ()
    return {int(k): v for k, v in _facts(items).items() if k.isdecimal() and len(k) < 10}, _facts(
        values.items()
    )


def _facts(items: Iterable[tuple[str, object]]) -> dict[str, float]:
    """Return what is a number; an integer may be one that no float holds."""
    return {k: float(v) for k, v in items if isinstance(v, (int, float)) and abs(v) < 1e300}


def names_in(folder: Path) -> list[str]:
    """Return what an output directory holds, nothing where there is none; CheckpointError of what is none."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be the output directory: {one_line(error)}") from error


def refuse_foreign(folder: Path) -> None:
    """Raise CheckpointError of a directory that holds a result, or what no result is made of."""
    names = names_in(folder)
    if MANIFEST_NAME in names:
        raise CheckpointError(
            f"{folder}: holds a result already: choose another directory, or go on with what is unfinished "
            "by --resume (resume=True)"
        )
    for name in names:
        if name not in _OWN_NAMES and not _is_litter(name):
            raise CheckpointError(f"{folder}: is not empty (it holds {name!r}) and is no result of omniquant")


def _is_litter(name: str) -> bool:
    """Tell whether this is a temporary file of ours that a killed run left behind."""
    if is_scratch(name):
        return True
    of = temporary_of(name)
    return of is not None and (of in _OWN_NAMES or _BLOCK.fullmatch(of) is not None)


def _remove_litter(folder: Path) -> None:
    for path in folder.iterdir():
        if _is_litter(path.name):
            path.unlink(missing_ok=True)


def _undo(folder: Path, made: list[Path], existing: set[str]) -> None:
    """Remove what a failed start wrote, never what was there before."""
    try:
        for path in folder.iterdir():
            if path.name not in existing and (path.name in _OWN_NAMES or _is_litter(path.name)):
                path.unlink()
        for path in made:
            path.rmdir()
    except OSError:
        pass  # the error that led here matters more

"""manifest.json: what a result directory holds, whose it is, and the checksum of every file in it.

Everything in it depends on model, data and configuration alone, so two runs of the same calibration write the
same bytes; what depends on the clock is in run.json. The manifest carries a checksum of itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.json_file import parse_json_object
from omniquant.checkpoint.text import one_line, shown
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.config.scheme import LINEARS
from omniquant.errors import CheckpointError, ConfigError
from omniquant.mixed.allocation import Allocation
from omniquant.report import BlockReport
from omniquant.tuning.record import Tuning

MANIFEST_NAME = "manifest.json"
FORMAT = "omniquant-result"
FORMAT_VERSION = 1

_MAX_BYTES = 256 << 20
_HEX = frozenset("0123456789abcdef")
_LINEAR = re.compile(rf"layers\.\d{{1,6}}\.({'|'.join(LINEARS)})", re.ASCII)


@dataclass(frozen=True)
class FileEntry:
    """A file of the directory as it must be."""

    file: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Return the entry of a file that has just been written."""
        data = path.read_bytes()
        return cls(path.name, len(data), hashlib.sha256(data).hexdigest())

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return {"file": self.file, "bytes": self.bytes, "sha256": self.sha256}

    @classmethod
    def from_fields(cls, values: Fields) -> FileEntry:
        """Read and check an entry of an untrusted manifest."""
        name = values.text("file")
        if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
            raise values.fail("file", "a plain file name")
        digest = values.text("sha256")
        if len(digest) != 64 or not set(digest) <= _HEX:
            raise values.fail("sha256", "64 hexadecimal digits")
        return cls(name, values.integer("bytes", minimum=0), digest)


@dataclass(frozen=True)
class BlockEntry:
    """A finished block: its file and its report."""

    file: FileEntry
    report: BlockReport


@dataclass(frozen=True)
class Header:
    """Whose result this is: all that decides whether a run may be resumed."""

    scheme: QuantConfig
    options: CalibrationOptions
    model: dict[str, Any]  # name, source, fingerprint, num_layers, vocab_size, spec
    calibration: dict[str, Any]  # samples, seqlen, tokens_sha256
    allocation: Allocation | None = None  # what the bits were chosen by
    tuning: Tuning | None = None  # how the scales were tuned afterwards

    @property
    def num_layers(self) -> int:
        """Number of blocks of the model."""
        return int(self.model["num_layers"])

    @property
    def budget(self) -> float | None:
        """The bits a weight that were to be spent; None where nothing was allocated."""
        return None if self.allocation is None else self.allocation.average_bits

    def difference(self, other: Header) -> str | None:
        """Return what differs from `other`, as "scheme W4A4, not W3A16"; None if they are the same run."""
        if self.scheme.text != other.scheme.text:
            return f"scheme {self.scheme.text}, not {other.scheme.text}"
        one, two = dict(self.scheme.overrides), dict(other.scheme.overrides)
        for name in sorted({*one, *two}):
            if one.get(name) != two.get(name):
                return f"{name} {one.get(name, self.scheme).text}, not {two.get(name, other.scheme).text}"
        if self.budget != other.budget:
            return f"average_bits {self.budget}, not {other.budget}"
        mine, theirs = self.options.to_dict(), other.options.to_dict()
        for name in mine:
            if mine[name] != theirs[name]:
                return f"{name} {mine[name]}, not {theirs[name]}"
        if self.model["fingerprint"] != other.model["fingerprint"]:
            return (
                f"model {self.model['name']} ({self.model['fingerprint'][:12]}), not {other.model['name']} "
                f"({other.model['fingerprint'][:12]})"
            )
        for name in ("samples", "seqlen"):
            if self.calibration[name] != other.calibration[name]:
                return f"calibration {name} {self.calibration[name]}, not {other.calibration[name]}"
        one_sum, two_sum = (header.calibration["tokens_sha256"] for header in (self, other))
        if one_sum != two_sum:
            return f"other calibration data (tokens of sha256 {one_sum[:12]}, not {two_sum[:12]})"
        if self.tuning != other.tuning:
            return f"tuning ({self.tuning or 'none'}), not ({other.tuning or 'none'})"
        return None


@dataclass(frozen=True)
class Manifest:
    """The header, the files beside the blocks, and the blocks finished so far (from the first on)."""

    header: Header
    files: tuple[FileEntry, ...] = ()
    blocks: tuple[BlockEntry, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """Whether every block of the model is done."""
        return len(self.blocks) == self.header.num_layers

    def with_block(self, index: int, entry: BlockEntry) -> Manifest:
        """Return the manifest with block `index` added, or set anew.

        A block that comes out otherwise than before (another machine's arithmetic) is not what the blocks
        behind it were calibrated on: they are dropped.
        """
        same = index < len(self.blocks) and self.blocks[index].file == entry.file
        behind = self.blocks[index + 1 :] if same else ()
        return replace(self, blocks=(*self.blocks[:index], entry, *behind))

    def write(self, folder: Path) -> None:
        """Write manifest.json durably."""
        atomic_write_bytes(folder / MANIFEST_NAME, _text(self._body()))

    def _body(self) -> dict[str, Any]:
        header = self.header
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "scheme": header.scheme.text,
            **_mixed(header),
            **({} if header.tuning is None else {"tuning": header.tuning.to_dict()}),
            "options": header.options.to_dict(),
            "model": header.model,
            "calibration": header.calibration,
            "files": [entry.to_dict() for entry in self.files],
            "blocks": [entry.file.to_dict() | {"report": entry.report.durable()} for entry in self.blocks],
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read manifest.json, which nobody vouches for.

        Raises
        ------
        CheckpointError
            Naming file and field: missing, damaged (its checksum), of another format, or nonsense.
        """
        path = folder / MANIFEST_NAME
        data = _read_bytes(path)
        values = parse_json_object(data, str(path))
        fields_ = Fields(values, str(path))
        if values.get("format") != FORMAT:
            raise fields_.fail("format", FORMAT)
        if values.get("format_version") != FORMAT_VERSION:
            raise fields_.fail(
                "format_version", f"{FORMAT_VERSION} (written by another version of omniquant)"
            )
        body = {key: value for key, value in values.items() if key != "sha256"}
        if data != _text(body):
            raise CheckpointError(f"{path}: sha256 does not match the content: the file is damaged")
        header = _read_header(fields_)
        return cls(header, _read_files(fields_), _read_blocks(fields_, header.num_layers))


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {one_line(error)}") from error
    if len(data) > _MAX_BYTES:
        raise CheckpointError(f"{path}: larger than the {_MAX_BYTES} bytes allowed for it")
    return data


def _text(body: dict[str, Any]) -> bytes:
    """Return the file's bytes: the body and, at the end, the checksum of its canonical form."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, indent=1).encode() + b"\n"


def _section(fields_: Fields, name: str) -> Fields:
    section = fields_.section(name)
    if section is None:
        raise fields_.fail(name, "an object")
    return section


def _read_header(fields_: Fields) -> Header:
    try:
        scheme = _read_scheme(fields_)
        options = CalibrationOptions.from_dict(_section(fields_, "options").values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{fields_.where}: {one_line(error)}") from None
    model, calibration = _section(fields_, "model"), _section(fields_, "calibration")
    for name in ("name", "source", "fingerprint"):
        model.text(name)
    for name in ("num_layers", "vocab_size"):
        model.integer(name)
    _section(model, "spec")
    for name in ("samples", "seqlen"):
        calibration.integer(name)
    calibration.text("tokens_sha256")
    section = fields_.section("allocation")
    allocation = None if section is None else Allocation.from_fields(section)
    for name in (*dict(scheme.overrides), *(allocation.costs if allocation else ())):
        if not _LINEAR.fullmatch(name) or int(name.split(".")[1]) >= model.integer("num_layers"):
            raise CheckpointError(f"{fields_.where}: {shown(name)} is no linear of the model")
    tuned = fields_.section("tuning")
    tuning = None if tuned is None else Tuning.from_fields(tuned)
    return Header(scheme, options, dict(model.values), dict(calibration.values), allocation, tuning)


def _mixed(header: Header) -> dict[str, Any]:
    """Return what a manifest says of mixed precision; nothing where there is none."""
    mixed: dict[str, Any] = {}
    if header.scheme.overrides:
        mixed["overrides"] = {name: own.text for name, own in header.scheme.overrides}
    if header.allocation is not None:
        mixed["allocation"] = header.allocation.to_dict()
    return mixed


def _read_scheme(fields_: Fields) -> QuantConfig:
    scheme = QuantConfig.parse(fields_.text("scheme"))
    section = fields_.section("overrides")
    if section is None:
        return scheme
    own = tuple((name, QuantConfig.parse(section.text(name))) for name in section.values)
    return replace(scheme, overrides=own)


def _read_list(fields_: Fields, name: str) -> list[Fields]:
    values = fields_.values.get(name)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise fields_.fail(name, "a list of objects")
    return [Fields(value, f"{fields_.where}: {name} {index}") for index, value in enumerate(values)]


def _read_files(fields_: Fields) -> tuple[FileEntry, ...]:
    return tuple(FileEntry.from_fields(entry) for entry in _read_list(fields_, "files"))


def _read_blocks(fields_: Fields, num_layers: int) -> tuple[BlockEntry, ...]:
    entries = _read_list(fields_, "blocks")
    if len(entries) > num_layers:
        raise CheckpointError(f"{fields_.where}: blocks: {len(entries)} of a model that has {num_layers}")
    blocks = []
    for index, entry in enumerate(entries):
        report = BlockReport.from_dict(entry.values.get("report"), entry.where)
        if report.index != index:
            raise CheckpointError(f"{entry.where}: report is of block {report.index}")
        blocks.append(BlockEntry(FileEntry.from_fields(entry), report))
    return tuple(blocks)

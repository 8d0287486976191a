"""Reading a JSON object from bytes nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path

from omniquant.checkpoint.text import one_line, shown
from omniquant.errors import CheckpointError

_MIB = 1 << 20


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # json keeps the last of two equal keys without a word; other readers keep the first.
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(duplicate)} occurs twice")
    return result


def parse_json_object(data: bytes, where: str) -> dict[str, object]:
    """Parse a JSON object.

    Parameters
    ----------
    data
        UTF-8 text.
    where
        What the data are, for messages: a path, perhaps with the part of the file.

    Raises
    ------
    CheckpointError
        If it is no JSON, no object, nested too deep or has a key twice.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {shown(value)}")
    return value


def read_json_object(path: Path, max_bytes: int = 16 * _MIB) -> dict[str, object]:
    """Read a file that holds one JSON object.

    Raises
    ------
    CheckpointError
        If the file is missing, unreadable, larger than `max_bytes` or not a JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {one_line(error)}") from error
    if len(data) > max_bytes:
        raise CheckpointError(f"{path}: larger than the {max_bytes} bytes allowed for it")
    return parse_json_object(data, str(path))

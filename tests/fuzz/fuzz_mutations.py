"""Small changes to valid files: of their bytes, and of the JSON within, which random bytes never get past."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Json = Any

DEEP = "<deep>"  # stands for lists within lists, too deep for Python's own writer
_INTEGERS = (
    0,
    1,
    2,
    7,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_VALUES: tuple[Json, ...] = (
    None, True, False, 0, 1, -1, 3, 17, 2**31, 2**53, 2**63, 2**64, 10**400, 0.5, -0.0, 1e-300, 1e308,
    float("inf"), float("nan"), "", "a", "../../etc/passwd", "\x00", "\ud800", "x" * 5000, [], [[]], [0, 0],
    [2**62, 4], [1] * 200, DEEP, {}, {"a": {}}, "F32", "BF16", "I64", "W4A4", "llama3", "BPE",
)  # fmt: skip


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return the content with one to four changes: bits, integers, spans cut, repeated, moved or made up."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        # Headers are where readers decide, so half of all changes are near the start.
        at = min(at, rng.randrange(256)) if rng.random() < 0.5 else at
        span = rng.randrange(1, 17)
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + span] = rng.randbytes(span)
            case 2:
                width = rng.choice((1, 2, 4, 8))
                data[at : at + width] = (rng.choice((*_INTEGERS, len(data))) % 256**width).to_bytes(
                    width, "little"
                )
            case 3:
                del data[at : at + rng.choice((span, 8 * span, len(data)))]
            case 4:
                data[at:at] = rng.randbytes(span)
            case 5:
                data[at:at] = data[at : at + 8 * span]
            case _:
                other = rng.randrange(len(data) + 1)
                data[at : at + span] = data[other : other + span]
    return bytes(data)


def _places(value: Json, found: list[tuple[Json, Json]]) -> list[tuple[Json, Json]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _places(value[key], found)
    return found


def mutate_json(rng: random.Random, value: Json) -> Json:
    """Return a copy with one to three entries replaced, removed, moved, nudged or added."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(_places(root, []))
        other = rng.choice(_places(root, []))
        match rng.randrange(6):
            case 0 if holder is not root:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(other[0][other[1]])
            case 2 if isinstance(holder, dict):
                holder[rng.choice(("", "rope_scaling", "extra", "model.norm.weight"))] = copy.deepcopy(
                    rng.choice(_VALUES)
                )
            case 3 if isinstance(holder[key], int):
                holder[key] = holder[key] + rng.choice((-1, 1, 8, -(2**32), 2**32))
            case 4:
                holder[key] = copy.deepcopy(rng.choice(_VALUES))
            case _:
                holder[key] = rng.choice((rng.choice(_INTEGERS), rng.random(), str(rng.choice(_INTEGERS))))
        if not root:
            return None
    return root[0]


def dump(value: Json, indent: int | None = None) -> bytes:
    """Return JSON text, also of what JSON should not hold: NaN, lone surrogates, endless nesting."""
    text = json.dumps(value, indent=indent).replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000)
    return text.encode("utf-8", "surrogatepass")


def in_json(change: Callable[[Json], bytes] = dump) -> Callable[[random.Random, bytes], bytes]:
    """Return a mutation of JSON files; `change` makes the file of the changed value."""

    def mutate(rng: random.Random, content: bytes) -> bytes:
        return change(mutate_json(rng, json.loads(content)))

    return mutate


def in_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Return a safetensors file whose header was changed as JSON."""
    length = int.from_bytes(content[:8], "little")
    header = dump(mutate_json(rng, json.loads(content[8 : 8 + length])))
    return len(header).to_bytes(8, "little") + header + content[8 + length :]

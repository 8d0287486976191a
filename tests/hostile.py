"""Judging how readers meet damaged, truncated and lying files.

Whatever the bytes, a reader ends within a second, either with a model or with a CheckpointError of one
line that names the file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from omniquant.errors import CheckpointError
from omniquant.models import load_model

SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 16,
}
GGUF_SIZES: dict[str, Any] = {**SIZES, "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}


def read_everything(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return every tensor of a model, so that every reader runs."""
    model = load_model(path)
    tensors = {
        f"{layer}.{name}": values
        for layer in range(model.num_layers)
        for name, values in model.block(layer).items()
    }
    tensors |= model.ends().final_norm
    tensors |= {"head": model.lm_head(), "embedding": model.embed(np.arange(model.vocab_size))}
    return tensors


def outcome(path: Path, read: Callable[[Path], Any] = read_everything, names: str = "") -> Any:
    """Return what was read, or None where it was refused as it should be."""
    result, spent = timed(path, read, names)
    for _ in range(2):
        if within_a_second(spent):
            return result
        # A processor that others take from us is slow at times; a reader that is slow is so each time.
        spent = timed(path, read, names)[1]
    assert within_a_second(spent), f"{spent:.2f} s"
    return result


def timed(path: Path, read: Callable[[Path], Any], names: str) -> tuple[Any, float]:
    """Return what was read, or None where it was refused as it should be, and the CPU time of that."""
    start = time.process_time()
    try:
        result = read(path)
    except CheckpointError as error:
        message = str(error)
        assert names in message
        assert str(path) in message
        assert message.isprintable(), message
        assert len(message) < 600
        result = None
    return result, time.process_time() - start


def within_a_second(spent: float) -> bool:
    """Tell whether CPU time is below a second of a processor at ease."""
    return spent < 1.0 or spent < 20 * common_work()


def common_work() -> float:
    """Return the CPU time of parsing 50,000 small objects of JSON here and now.

    It takes about 0.05 s on a processor at ease, so twenty of it stand for the second of the reliability
    figures where the processor is slower, or where thousands of tests before left the garbage collector a
    heap to walk.
    """
    document = "[" + ",".join('{"dtype":"F32","shape":[1],"data_offsets":[0,4]}' for _ in range(50_000)) + "]"
    start = time.process_time()
    json.loads(document)
    return time.process_time() - start


def same(found: dict[str, np.ndarray[Any, Any]], expected: dict[str, np.ndarray[Any, Any]]) -> bool:
    """Tell whether two models hold the same bits."""
    return found.keys() == expected.keys() and all(
        found[name].tobytes() == expected[name].tobytes() and found[name].shape == expected[name].shape
        for name in expected
    )

"""A calibration small enough to run in every test, and the fingerprint of what it wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from synthetic import write_llama_folder

from omniquant.models.load import load_model
from omniquant.models.model import Model
from omniquant.state import RUN_NAME

VOCAB = 64


def small_folder(path: Path, **options: Any) -> Path:
    """Write a two-layer LLaMA with grouped-query attention."""
    return write_llama_folder(path, hidden=16, heads=4, kv_heads=2, ffn=20, vocab=VOCAB, seed=7, **options)


def small_model(path: Path, **options: Any) -> Model:
    """Write and open it."""
    return load_model(small_folder(path, **options))


def small_tokens(samples: int = 4, seqlen: int = 12, seed: int = 3) -> npt.NDArray[np.int32]:
    """Return random windows."""
    return np.random.default_rng(seed).integers(0, VOCAB, (samples, seqlen)).astype(np.int32)


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and give it a checksum that fits: a lie, not damage."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    del body["sha256"]
    change(body)
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    text = json.dumps(body | {"sha256": hashlib.sha256(canonical).hexdigest()}, indent=1)
    path.write_text(text + "\n")


def contents(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a result but run.json, the one that depends on the clock."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != RUN_NAME
    }

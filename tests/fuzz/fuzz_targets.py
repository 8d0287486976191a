"""What is fuzzed: a valid folder or file, the one file that is changed, how, and the reader that meets it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy
from fuzz_mutations import Json, dump, in_json, in_safetensors, mutate_bytes
from hostile import GGUF_SIZES, SIZES, read_everything
from small_run import small_model, small_tokens
from synthetic import byte_level_tokenizer, write_llama_folder, write_llama_gguf

from omniquant import CalibrationResult, calibrate, calibration_windows
from omniquant.models import load_model

Mutation = Callable[[random.Random, bytes], bytes]


@dataclass
class Target:
    """A place on disk, a file below it, and the ways to change that file."""

    name: str
    path: Path  # what the reader is given
    file: Path  # what is changed
    mutations: tuple[Mutation, ...]
    read: Callable[[Path], Any]
    after: Callable[[bytes], None] = lambda content: None  # keeps other files in step
    valid: bytes = b""

    def __post_init__(self) -> None:
        self.valid = self.file.read_bytes()

    def mutate(self, rng: random.Random) -> bytes:
        """Return a changed file."""
        return rng.choice(self.mutations)(rng, self.valid)

    def put(self, content: bytes) -> None:
        """Write the file anew; the old one may still be mapped."""
        self.file.unlink(missing_ok=True)
        self.file.write_bytes(content)
        self.after(content)


def read_model(path: Path) -> None:
    """Read every tensor, then the tokenizer."""
    read_everything(path)
    text = path.parent / "text.txt"
    text.write_text("The text, read 1 or 2 times. ")
    calibration_windows(text, load_model(path), samples=1, seqlen=2)


def read_result(path: Path) -> None:
    """Touch every byte a user of a result would."""
    model = CalibrationResult.load(path).fold()
    for index in range(model.num_layers):
        model.block(index)
    model.lm_head()
    model.tokenizer  # noqa: B018 - it is read when asked for


def _signed(body: Json) -> bytes:
    """Return a manifest whose checksum fits: a lie, not damage."""
    body = dict(body) if isinstance(body, dict) else {"body": body}
    body.pop("sha256", None)
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return dump(body | {"sha256": hashlib.sha256(canonical).hexdigest()}, indent=1) + b"\n"


def _agree(folder: Path, block: Path) -> Callable[[bytes], None]:
    """Return what makes the manifest fit a changed block."""
    body = json.loads((folder / "manifest.json").read_text())

    def agree(content: bytes) -> None:
        entry = body["blocks"][0]
        entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
        (folder / "manifest.json").write_bytes(_signed(body))

    assert body["blocks"][0]["file"] == block.name
    return agree


def _tensor_values(rng: random.Random, content: bytes) -> bytes:
    """Return a safetensors file with some elements of one tensor changed, and nothing else."""
    tensors = safetensors.numpy.load(content)
    name = rng.choice(sorted(tensors))
    values = bytearray(tensors[name].tobytes())
    for _ in range(min(len(values), rng.randint(1, 8))):
        values[rng.randrange(len(values))] = rng.randrange(256)
    return content.replace(tensors[name].tobytes(), bytes(values))


def _checkpoints(folder: Path) -> list[Target]:
    sizes = {key: SIZES[name] for key, name in (("layers", "num_hidden_layers"), ("hidden", "hidden_size"))}
    targets = []
    for name, mutations in {
        "config.json": (in_json(), mutate_bytes),
        "model.safetensors": (in_safetensors, mutate_bytes),
        "tokenizer.json": (in_json(), mutate_bytes),
    }.items():
        model = write_llama_folder(folder / name, heads=2, kv_heads=1, ffn=12, vocab=16, **sizes)
        targets.append(Target(name, model, model / name, mutations, read_model))
    sharded = write_llama_folder(folder / "shards", heads=2, kv_heads=1, ffn=12, vocab=16, shards=2, **sizes)
    index = sharded / "model.safetensors.index.json"
    return [*targets, Target("shards", sharded, index, (in_json(), mutate_bytes), read_model)]


def _gguf(folder: Path) -> list[Target]:
    path = folder / "model.gguf"
    tokenizer = byte_level_tokenizer([("t", "h"), ("th", "e")])
    write_llama_gguf(path, tokenizer=tokenizer, **(GGUF_SIZES | {"vocab_size": 260}))
    return [Target("gguf", path, path, (mutate_bytes,), read_model)]


def _results(folder: Path) -> list[Target]:
    original = folder / "original"
    options: Any = {"method": "affinequant", "epochs": 1, "progress": False, "threads": 1}
    model = small_model(folder / "model")
    calibrate(model, small_tokens(), "W3A16g8", output=original, **options)
    manifest = shutil.copytree(original, folder / "manifest")
    targets = [
        Target("manifest", manifest, manifest / "manifest.json", (in_json(_signed), in_json()), read_result)
    ]
    for name in ("block_00000.safetensors", "run.json"):
        copy = shutil.copytree(original, folder / f"of {name}")
        changed = copy / name
        if name == "run.json":
            targets.append(Target(name, copy, changed, (in_json(), mutate_bytes), read_result))
        else:
            mutations = (in_safetensors, _tensor_values, mutate_bytes)
            targets.append(Target("block", copy, changed, mutations, read_result, _agree(copy, changed)))
    return targets


def all_targets(folder: Path) -> list[Target]:
    """Write every valid input below a folder; GGUF is left out without its package."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = [*_checkpoints(folder), *_results(folder / "results")]
    with contextlib.suppress(ImportError):
        targets += _gguf(folder)
    return targets

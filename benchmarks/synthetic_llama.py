"""What calibrating a large LLaMA takes, without having one: random bfloat16 shards of its shape, and memory.

    python -m benchmarks.synthetic_llama FOLDER --layers 2 --samples 32 --seqlen 512 --epochs 1

writes a checkpoint of LLaMA-2-7B's sizes into FOLDER (once: 0.4 GB a block and 0.5 GB around them; the
whole model: `--layers 32`), calibrates it block after block in a process of its own and prints, in JSON, what
each block took, the largest resident size, and both projected to the whole model. `--steps 3` ends after so
many optimiser steps: by then everything a block needs has been in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.blockfile import linear_shapes
from omniquant.memory import peak_rss_mib
from omniquant.models.spec import BlockSpec
from omniquant.progress import Callback, StepEvent
from omniquant.report import BlockReport

NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
ROWS = 1024  # made together
LAYERS_A_SHARD = 4
DEVIATION = 0.02

Shapes = dict[str, tuple[int, ...]]


# --- the checkpoint ---------------------------------------------------------------------------------------


def shards(spec: BlockSpec, layers: int, vocab: int) -> list[Shapes]:
    """Return the tensors of each file, by name."""
    hidden = spec.hidden_size
    files: list[Shapes] = [
        {"model.embed_tokens.weight": (vocab, hidden)},
        {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)},
    ]
    for first in range(0, layers, LAYERS_A_SHARD):
        shapes: Shapes = {}
        for layer in range(first, min(layers, first + LAYERS_A_SHARD)):
            prefix = f"model.layers.{layer}."
            shapes |= {f"{prefix}{NAMES[name]}.weight": size for name, size in linear_shapes(spec).items()}
            norms = ("input_layernorm", "post_attention_layernorm")
            shapes |= {f"{prefix}{norm}.weight": (hidden,) for norm in norms}
        files.append(shapes)
    return files


def values(shape: tuple[int, ...], random: np.random.Generator) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield a tensor's rows as the bits of bfloat16: ones for a norm, else small random numbers."""
    if len(shape) == 1:
        yield np.full(shape, 0x3F80, np.uint16)
        return
    for start in range(0, shape[0], ROWS):
        rows = random.standard_normal((min(ROWS, shape[0] - start), shape[1]), np.float32)
        rows *= np.float32(DEVIATION)
        yield (rows.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def write_shard(path: Path, shapes: Shapes, random: np.random.Generator) -> None:
    """Write one file, a few rows in memory at a time."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            for rows in values(shape, random):
                file.write(rows.data)


def write_checkpoint(folder: Path, spec: BlockSpec, layers: int, vocab: int, positions: int) -> None:
    """Write config.json last: a folder that has one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    files = shards(spec, layers, vocab)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for name, shapes in zip(names, files, strict=True):
        write_shard(folder / name, shapes, random)
    weight_map = {tensor: name for name, shapes in zip(names, files, strict=True) for tensor in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "llama",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.ffn_size,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


# --- the calibration --------------------------------------------------------------------------------------


class EnoughError(Exception):
    """So many steps were asked for."""


class Watch(Callback):
    """Note when steps end, and what memory a block took by its end."""

    def __init__(self, steps: int | None) -> None:
        self.most = steps
        self.stamps: list[float] = []
        self.step_seconds: list[float] = []
        self.blocks: list[dict[str, float]] = []

    def on_step(self, event: StepEvent) -> None:
        self.stamps.append(time.perf_counter())
        if event.step == 1:
            self.stamps = self.stamps[-1:]
        else:
            self.step_seconds.append(self.stamps[-1] - self.stamps[-2])
        if event.step == self.most:
            raise EnoughError

    def on_block(self, report: BlockReport) -> None:
        self.blocks.append({"seconds": round(report.seconds, 1), "peak_rss_mib": peak_rss_mib()})
        print(f"block {report.index}: {self.blocks[-1]}", file=sys.stderr, flush=True)


def calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Calibrate the checkpoint and return what it took."""
    import omniquant

    model = omniquant.load_model(arguments.folder)
    shape = (arguments.samples, arguments.seqlen)
    windows = np.random.default_rng(1).integers(0, model.vocab_size, shape).astype(np.int32)
    watch, started = Watch(arguments.steps), time.perf_counter()
    options = {"epochs": arguments.epochs, "memory": arguments.memory, "threads": arguments.threads}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        try:
            result = omniquant.calibrate(
                model, windows, arguments.scheme, method=arguments.method, output=f"{place}/result",
                progress=False, callbacks=[watch], **{k: v for k, v in options.items() if v is not None},
            )  # fmt: skip
            peak = result.peak_rss_mib
        except EnoughError:
            peak = peak_rss_mib()
    facts: dict[str, Any] = {
        "scheme": arguments.scheme, "method": arguments.method, "samples": shape[0], "seqlen": shape[1],
        "seconds": round(time.perf_counter() - started, 1), "peak_rss_mib": peak, "blocks": watch.blocks,
    }  # fmt: skip
    if watch.step_seconds:
        facts["seconds_per_step"] = round(median(watch.step_seconds), 3)
    if watch.blocks:
        facts |= projection(arguments, watch)
    return facts


def projection(arguments: argparse.Namespace, watch: Watch) -> dict[str, float]:
    """Return the seconds of a block, and of the whole model by the steps of all its epochs."""
    block = median(each["seconds"] for each in watch.blocks)
    taken = len(watch.step_seconds) / len(watch.blocks) + 1
    step = median(watch.step_seconds) if watch.step_seconds else 0.0
    around = block - taken * step
    whole = around + arguments.project_epochs * arguments.samples * step
    return {
        "seconds_per_block": round(block, 1),
        f"seconds_per_block_of_{arguments.project_epochs}_epochs": round(whole, 1),
        f"hours_of_{arguments.project_layers}_blocks": round(arguments.project_layers * whole / 3600, 2),
    }


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.synthetic_llama", description=__doc__)
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    found.add_argument("folder", type=Path)
    for name, value in (("hidden", 4096), ("ffn", 11008), ("heads", 32), ("kv-heads", 32), ("layers", 2)):
        found.add_argument(f"--{name}", type=int, default=value)
    found.add_argument("--vocab", type=int, default=32000)
    found.add_argument("--scheme", default="W4A4")
    found.add_argument("--method", default="omniquant")
    found.add_argument("--samples", type=int, default=32)
    found.add_argument("--seqlen", type=int, default=512)
    found.add_argument("--epochs", type=int, default=1)
    found.add_argument("--steps", type=int, help="end after so many of the first block")
    found.add_argument("--memory", help="of the activations, as omniquant quantize takes it")
    found.add_argument("--threads", type=int)
    found.add_argument("--project-epochs", type=int, default=20)
    found.add_argument("--project-layers", type=int, default=32)
    found.add_argument("--limit-gib", type=float, help="exit status 1 if more was resident")
    found.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return found


def main() -> int:
    """Write where nothing is, then measure in a fresh process: writing must not count."""
    arguments = parser().parse_args()
    if arguments.measure:
        print(json.dumps(calibrate(arguments)))
        return 0
    head_dim = arguments.hidden // arguments.heads
    spec = BlockSpec(arguments.hidden, arguments.ffn, arguments.heads, arguments.kv_heads, head_dim)
    if not (arguments.folder / "config.json").exists():
        write_checkpoint(arguments.folder, spec, arguments.layers, arguments.vocab, 4096)
    command = [sys.executable, "-m", "benchmarks.synthetic_llama", *sys.argv[1:], "--measure"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    facts = json.loads(done.stdout)
    print(json.dumps(facts, indent=1))
    return int(arguments.limit_gib is not None and facts["peak_rss_mib"] > 1024 * arguments.limit_gib)


if __name__ == "__main__":
    sys.exit(main())

"""A Mixtral that speaks: omniquant-tiny, its MLPs upcycled to experts (arXiv 2212.05055).

Every expert is the MLP with each weight moved by 5 % noise, the routers are random: experts differ, and
perplexity means something. The outlier channels are those omniquant-tiny has by design.

    python -m benchmarks.upcycled_mixtral --scheme W4A4 --samples 32
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import safetensors.numpy

import omniquant
from omniquant.embedded import embedded_model_path

METHODS = ("rtn", "smoothquant", "omniquant", "affinequant")
_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def upcycled(experts: int = 4, used: int = 2, noise: float = 0.05, seed: int = 0) -> omniquant.Model:
    """Return the model."""
    folder = embedded_model_path()
    config = json.loads((folder / "config.json").read_text())
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, values in safetensors.numpy.load_file(folder / "model.safetensors").items():
        layer, found, linear = name.partition(".mlp.")
        if not found:
            tensors[name] = values
            continue
        ours = _NAMES[linear.removesuffix(".weight")]
        for expert in range(experts):
            factor = 1 + noise * rng.standard_normal(values.shape, np.float32)
            tensors[f"{layer}.block_sparse_moe.experts.{expert}.{ours}.weight"] = values * factor
        if ours == "w1":
            # Small against the outlier channels, so that they do not choose the expert alone.
            router = rng.standard_normal((experts, values.shape[1]), np.float32) / 16
            tensors[f"{layer}.block_sparse_moe.gate.weight"] = router
    fields = {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": used}
    tokenizer = omniquant.load_model("omniquant-tiny").tokenizer
    return omniquant.model_from_arrays(tensors, config | fields, tokenizer, name="upcycled-tiny")


def main() -> None:
    """Print perplexities on the held-out text of the package."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upcycled_mixtral")
    parser.add_argument("--scheme", default="W4A4")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    args = parser.parse_args()
    model = upcycled()
    tokens = omniquant.calibration_windows(None, model, args.samples, 256)
    held_out = omniquant.evaluation_windows(None, model, 256, args.windows * 256)
    print(f"float: {omniquant.perplexity(model, held_out):.3f}")
    for method in args.methods:
        more = {} if method in ("rtn", "smoothquant") else {"epochs": args.epochs}
        result = omniquant.calibrate(model, tokens, args.scheme, method=method, progress=False, **more)
        found = result.evaluate(held_out).perplexity
        starved = sum(len(report.starved) for report in result.blocks)
        print(f"{args.scheme} {method}: {found:.3f}, {starved} starved experts", flush=True)


if __name__ == "__main__":
    main()

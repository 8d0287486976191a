"""What other engines compute from our exports against what we compute: one row a format and scheme.

    OMNIQUANT_SMOLLM2=SmolLM2-135M-Instruct.Q4_1.gguf python -m pytest benchmarks/test_runtimes.py

Weights are rounded to nearest; the figures are about engines, not about methods. Text is the Python
documentation's. Needs torch, transformers, compressed-tensors, onnxruntime, openvino, xllamacpp, auto-round;
without one, its rows are skipped.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import I32, greedy_ties, model_named, nats, our_logits
from third_party import (
    LlamaCpp,
    Logits,
    OnnxSession,
    OpenvinoSession,
    difference,
    feed,
    gptq_model,
    torch_logits,
    transformers_model,
)

import omniquant
from benchmarks.conftest import TABLES
from omniquant import _core
from omniquant.quantized import CalibrationResult

TABLE = TABLES.setdefault(
    "exports in other engines", ["| model | format | scheme | engine | found |", "|---|---|---|---|---|"]
)
SESSIONS = {"onnx": OnnxSession, "openvino": OpenvinoSession}
GROUPED = ["W2A16g64", "W3A16g32", "W4A16g64", "W4sA16g32", "W8A16g64"]


@pytest.fixture(scope="module", params=["embedded", "SmolLM2"])
def model(request: pytest.FixtureRequest) -> Iterator[omniquant.Model]:
    yield model_named(request.param)
    gc.collect()


@pytest.fixture(scope="module")
def window(model: omniquant.Model) -> I32:
    """Return one window of text, [1, 192]."""
    found: I32 = omniquant.evaluation_windows(None, model, 192, 192)
    return found


def rounded(model: omniquant.Model, scheme: str, target: str = "any") -> CalibrationResult:
    tokens = np.arange(3, 19)[None]
    return omniquant.calibrate(model, tokens, scheme, method="rtn", target=target, progress=False)


def row(model: omniquant.Model, format: str, scheme: str, engine: str, found: str) -> None:
    TABLE.append(f"| {model.name} | {format} | {scheme} | {engine} | {found} |")


@pytest.mark.parametrize("scheme", GROUPED)
@pytest.mark.parametrize("format", ["onnx", "openvino", "onnx dequantize-linear"])
def test_graphs(model: omniquant.Model, window: I32, format: str, scheme: str, tmp_path: Path) -> None:
    name, _, variant = format.partition(" ")
    if format == "onnx" and scheme == "W3A16g32":
        pytest.skip("MatMulNBits cannot hold 3 bits")
    result = rounded(model, scheme)
    session = SESSIONS[name](result.export(tmp_path / "out", name, variant=variant or None))
    logits = session.run(feed(result.architecture, window))["logits"]
    found, exact = compared(result, window, logits)
    row(model, format, scheme, "onnxruntime" if name == "onnx" else "OpenVINO", found)
    assert exact


def compared(result: CalibrationResult, window: I32, logits: Logits) -> tuple[str, bool]:
    """Tell how far logits are from ours, and whether float32 explains it.

    Rounded to nearest at 2 bits, SmolLM2 is a broken model that blows up float32's own rounding: what one
    rounding a block moves is the measure there.
    """
    ours = our_logits(result, window)
    far = difference(logits, ours)
    if far < 1e-5:
        return f"logits to {far:.1e}", True
    noise = difference(our_logits(result, window, rounded_again=True), ours)
    return f"logits to {far:.1e} (one rounding a block moves them {noise:.1e})", far < 4 * noise


@pytest.mark.parametrize("scheme", [*GROUPED, "W4A16", "W8sA16"])
def test_compressed_tensors(model: omniquant.Model, window: I32, scheme: str, tmp_path: Path) -> None:
    result = rounded(model, scheme)
    plain = torch_logits(transformers_model(result.export(tmp_path / "plain", "huggingface")), window)
    path = result.export(tmp_path / "packed", "compressed-tensors")
    packed = torch_logits(transformers_model(path, dequantize=not result.scheme.w_symmetric), window)
    apart = float(np.abs(packed - plain).max())
    found, exact = compared(result, window, plain)
    row(model, "huggingface", scheme, "transformers", found)
    row(model, "compressed-tensors", scheme, "transformers", f"{apart} from the dequantized model")
    assert apart == 0.0
    assert exact


@pytest.mark.parametrize("scheme", ["W8sA8sfKV16"])
def test_integer_activations(model: omniquant.Model, window: I32, scheme: str, tmp_path: Path) -> None:
    """Each linear alone, on what it is given: a difference of one bit may be a step behind a rounding."""
    torch = pytest.importorskip("torch")
    result = rounded(model, scheme)
    theirs = transformers_model(result.export(tmp_path / "out", "compressed-tensors"))
    far = []

    def compare(index: int, name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            given = _core.fake_quantize(inputs[0].numpy(), bits=8, symmetric=True, full_range=True)
            weight = result.fold().block(index)[f"{name}.weight"].astype(np.float64)
            far.append(difference(output.numpy(), given.astype(np.float64) @ weight.T))

        return hook

    for index, layer in enumerate(theirs.model.layers):
        for name, part in (("o", layer.self_attn.o_proj), ("down", layer.mlp.down_proj)):
            assert isinstance(part, torch.nn.Linear)
            part.register_forward_hook(compare(index, name))
    torch_logits(theirs, window)
    assert len(far) == 2 * model.num_layers
    row(model, "compressed-tensors", scheme, "transformers", f"each linear to {max(far):.1e}")
    assert max(far) < 1e-5


@pytest.mark.parametrize("scheme", ["W2A16g64", "W3A16g32", "W4A16g64", "W4sA16g32", "W8A16g64"])
def test_gptq(model: omniquant.Model, window: I32, scheme: str, tmp_path: Path) -> None:
    result = rounded(model, scheme, "gptq")
    logits = torch_logits(gptq_model(result.export(tmp_path / "out", "gptq")), window)
    far = difference(logits, our_logits(result, window))
    row(model, "gptq", scheme, "auto-round", f"logits to {far:.1e}")
    assert far < 1e-3


@pytest.mark.parametrize(
    ("scheme", "kind"), [("W4A16g32", "Q4_1"), ("W4sA16g32", "Q4_0"), ("W8sA16", "Q8_0")]
)
def test_gguf(model: omniquant.Model, window: I32, scheme: str, kind: str, tmp_path: Path) -> None:
    result = rounded(model, scheme, "gguf")
    engine = LlamaCpp(result.export(tmp_path / "out", "gguf") / "model.gguf")
    # llama.cpp rounds activations to bytes, which moves a window by 1 %, either way: many windows.
    several = omniquant.evaluation_windows(None, model, 192, 192 * 64)
    apart = [
        np.nanmean(engine.nats(one) - nats(our_logits(result, one[None]), one[None])[0]) for one in several
    ]
    more, error = float(np.expm1(np.mean(apart))), float(np.std(apart) / len(apart) ** 0.5)
    ties = greedy_ties(result, window[0, :32], engine.greedy(window[0, :32], 64))
    same = f"{64 - len(ties)} of 64 greedy tokens" + (f" (ties of {max(ties):.2f})" if ties else "")
    row(model, f"gguf {kind}", scheme, "llama.cpp", f"perplexity {more:+.2%} ± {error:.2%}, {same}")
    assert abs(more) - 2 * error < 5e-3

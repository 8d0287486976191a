"""Our exports against the engines' own quantization of the same model at the same size, in the engine.

    OMNIQUANT_SMOLLM2=SmolLM2-135M-Instruct.Q4_1.gguf python -m pytest benchmarks/test_engine_quantizers.py

llama.cpp runs Q4_0 blocks, quantized by the `gguf` library; ONNX Runtime runs blocks of 64 inputs, quantized
by its MatMulNBitsQuantizer. Only the linears of the blocks differ between two rows of one engine. Ours are
calibrated here, by the preset `fast` and by learned rounding from a searched start: a minute for the embedded
model, about an hour for SmolLM2 on one core.

OMNIQUANT_CALIBRATION and OMNIQUANT_EVALUATION may name a text or .npy of token ids for SmolLM2; otherwise
text is the Python documentation's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from exports import I32, model_named, nll
from third_party import LlamaCpp, OnnxSession, feed

import omniquant
from benchmarks.conftest import TABLES
from omniquant.quantized import CalibrationResult

TABLE = TABLES.setdefault(
    "perplexity in the engine", ["| model | engine | quantized by | perplexity |", "|---|---|---|---|"]
)
Weight = npt.NDArray[np.float32]

OURS: dict[str, dict[str, Any]] = {
    "round-to-nearest": {"method": "rtn"},
    "OmniQuant": {"method": "omniquant", "preset": "fast", "rounding": "nearest"},
    "AffineQuant": {"method": "affinequant", "preset": "fast", "rounding": "nearest"},
    "OmniQuant, learned rounding": {
        "method": "omniquant", "rounding": "learned", "start": "search", "epochs": 3, "schedule": "cosine",
        "batch_size": 2, "lr_lwc": 0.05, "lr_let": 0.03, "lr_rounding": 2.0, "aug_loss": False,
    },
}  # fmt: skip


class Setting:
    """A model and its windows; every engine measures the same tokens."""

    def __init__(self, name: str) -> None:
        large = name == "SmolLM2"
        self.model, self.length = model_named(name), 512 if large else 256
        given, asked = (
            os.environ.get(f"OMNIQUANT_{x}") if large else None for x in ("CALIBRATION", "EVALUATION")
        )
        self.windows = omniquant.calibration_windows(given, self.model, 32, self.length)[:32]
        stream = omniquant.evaluation_windows(asked, self.model, self.length)
        self.text: I32 = stream[:20]

    def ours(self, scheme: str, target: str, recipe: str) -> CalibrationResult:
        options = OURS[recipe]
        return omniquant.calibrate(
            self.model, self.windows, scheme, target=target, progress=False, threads=1, **options
        )

    def report(self, engine: str, recipe: str, perplexity: float) -> float:
        TABLE.append(f"| {self.model.name} | {engine} | {recipe} | {perplexity:.3f} |")
        return perplexity


@pytest.fixture(scope="module", params=["embedded", "SmolLM2"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def floats_of(setting: Setting) -> CalibrationResult:
    """Return the model with its linears in float, as a result that can be exported."""
    return omniquant.calibrate(setting.model, setting.windows[:1], "W16A16", method="rtn", progress=False)


def in_llama_cpp(setting: Setting, path: Path) -> float:
    engine = LlamaCpp(path, context=setting.length)
    return float(np.exp(np.nanmean([engine.nats(window) for window in setting.text])))


def quantize_by_gguf(ours: Path, floats: Path) -> None:
    """Put the library's own Q4_0 blocks of the float file in the place of ours."""
    gguf = pytest.importorskip("gguf")
    plain = {tensor.name: tensor for tensor in gguf.GGUFReader(floats).tensors}
    reader = gguf.GGUFReader(ours, "r+")
    kind, changed = gguf.GGMLQuantizationType.Q4_0, 0
    for tensor in reader.tensors:
        if tensor.tensor_type == kind:
            blocks = gguf.quants.quantize(np.ascontiguousarray(plain[tensor.name].data), kind)
            tensor.data[:] = blocks.reshape(tensor.data.shape)
            changed += 1
    assert changed > 0
    reader.data.flush()


def test_llama_cpp_q4_0(setting: Setting, tmp_path: Path) -> None:
    """A learned Q4_0 file beats the library's in llama.cpp."""

    def file(result: CalibrationResult, name: str) -> Path:
        return result.export(tmp_path / name, "gguf") / "model.gguf"

    floats = file(floats_of(setting), "floats")
    setting.report("llama.cpp", "nothing: float32", in_llama_cpp(setting, floats))
    theirs = file(setting.ours("W4sA16g32", "gguf", "round-to-nearest"), "theirs")
    quantize_by_gguf(theirs, floats)
    theirs_found = setting.report("llama.cpp", "gguf's Q4_0", in_llama_cpp(setting, theirs))
    for index, recipe in enumerate(OURS):
        result = setting.ours("W4sA16g32", "gguf", recipe)
        found = setting.report(
            "llama.cpp", f"ours, Q4_0: {recipe}", in_llama_cpp(setting, file(result, f"{index}"))
        )
        assert recipe == "round-to-nearest" or found < theirs_found


def in_onnxruntime(setting: Setting, folder: Path) -> float:
    session, architecture = OnnxSession(folder), setting.model.architecture
    losses = [
        nll(session.run(feed(architecture, window[None]))["logits"], window[None]) for window in setting.text
    ]
    return float(np.exp(np.mean(losses)))


def quantized_by_onnxruntime(weight: Weight) -> dict[str, npt.NDArray[Any]]:
    """Let the engine's tool quantize x W^T; return codes [N, K], scale [N, G] and zero_point [N, G]."""
    onnx = pytest.importorskip("onnx")
    tool = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    rows, columns = weight.shape
    tensor, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", tensor, [None, columns])],
        [helper.make_tensor_value_info("y", tensor, [None, rows])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
    )
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    quantizer = tool.MatMulNBitsQuantizer(helper.make_model(graph, opset_imports=opset), block_size=64)
    quantizer.process()
    (node,) = (node for node in quantizer.model.model.graph.node if node.op_type == "MatMulNBits")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in quantizer.model.model.graph.initializer}
    packed, scale, zero_point = (stored[name] for name in node.input[1:4])
    groups = -(-columns // 64)
    codes = omniquant.unpack(packed.reshape(rows, -1), 4, groups * 64)[:, :columns]
    zeros = omniquant.unpack(zero_point.reshape(rows, -1), 4, groups)
    return {"codes": codes, "scale": scale.reshape(rows, groups).astype(np.float32), "zero_point": zeros}


def quantize_by_onnxruntime(setting: Setting) -> CalibrationResult:
    """Return the model as the engine's tool quantizes it."""
    result = omniquant.calibrate(setting.model, setting.windows[:1], "W4A16g64", method="rtn", progress=False)
    plain = floats_of(setting)
    for index in range(setting.model.num_layers):
        folded = result.state(index).folded
        for name, weight in plain.state(index).folded.items():
            if name.endswith(".weight") and weight.ndim == 2:
                for kind, values in quantized_by_onnxruntime(weight).items():
                    folded[name.replace("weight", kind)][...] = values
    return result


def test_onnxruntime_blocks_of_64(setting: Setting, tmp_path: Path) -> None:
    """A learned graph beats that of the engine's own tool."""
    folder = quantize_by_onnxruntime(setting).export(tmp_path / "theirs", "onnx")
    theirs_found = setting.report("ONNX Runtime", "its MatMulNBitsQuantizer", in_onnxruntime(setting, folder))
    for index, recipe in enumerate(OURS):
        folder = setting.ours("W4A16g64", "onnx", recipe).export(tmp_path / f"{index}", "onnx")
        found = setting.report("ONNX Runtime", f"ours: {recipe}", in_onnxruntime(setting, folder))
        assert recipe == "round-to-nearest" or found < theirs_found

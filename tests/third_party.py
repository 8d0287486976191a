"""Engines of others over what we export: onnxruntime, OpenVINO, llama.cpp, transformers and auto-round.

Each is asked for logits or log probabilities; where its package is missing, the test that asks skips by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from omniquant.models.adapter import Architecture

Logits = npt.NDArray[np.floating]
Tokens = npt.NDArray[np.integer]


class OnnxSession:
    """onnxruntime over our ONNX folder, or over one file."""

    def __init__(self, path: Path) -> None:
        runtime = pytest.importorskip("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = runtime.InferenceSession(path / "model.onnx" if path.is_dir() else path, options)
        self.names = [entry.name for entry in self._session.get_outputs()]

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self.names, self._session.run(None, inputs), strict=True))


class OpenvinoSession:
    """OpenVINO over our folder, in full precision and without quantizing activations on the way."""

    def __init__(self, folder: Path) -> None:
        openvino = pytest.importorskip("openvino")
        exact = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": 1,
        }
        self._model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", exact)
        self.names = [output.any_name for output in self._model.outputs]

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        found = self._model(inputs)
        return {name: np.array(found[name]) for name in self.names}


def feed(
    architecture: Architecture,
    tokens: Tokens,
    past: dict[str, Any] | None = None,
    mask: npt.NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Return the inputs of a graph for tokens [N, T], behind a past or none."""
    spec = architecture.spec
    before = 0 if past is None else past["present.0.key"].shape[2]
    count, length = tokens.shape
    mask = np.ones((count, before + length), np.int64) if mask is None else mask
    inputs = {
        "input_ids": tokens.astype(np.int64),
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, before:],
    }
    empty = np.zeros((count, spec.num_kv_heads, 0, spec.head_dim), np.float32)
    for index in range(architecture.num_layers):
        for kind in ("key", "value"):
            value = empty if past is None else past[f"present.{index}.{kind}"]
            inputs[f"past_key_values.{index}.{kind}"] = value
    return inputs


def difference(found: Logits, expected: Logits) -> float:
    """Largest difference relative to the largest logit: float32 sums in another order."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class LlamaCpp:
    """llama.cpp over one file, asked for log probabilities."""

    def __init__(self, path: Path, context: int = 256, *, exact: bool = False) -> None:
        """Load a file; exact: keys, values and attention in float32, not in float16."""
        library = pytest.importorskip("xllamacpp")
        parameters = library.CommonParams()
        parameters.model.path, parameters.n_ctx = str(path), context
        parameters.cpuparams.n_threads, parameters.warmup = 1, False
        if exact:
            parameters.cache_type_k = parameters.cache_type_v = library.ggml_type.GGML_TYPE_F32
            parameters.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = library.Server(parameters)

    def complete(self, prompt: Any, **options: Any) -> Any:
        request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "cache_prompt": True}
        return self._server.handle_completions(request | options)

    def _entries(self, tokens: Tokens, **options: Any) -> list[dict[str, Any]]:
        answer = self.complete([int(t) for t in tokens], **options)
        entries: list[dict[str, Any]] = answer["choices"][0]["logprobs"]["content"]
        return entries

    def logp(self, tokens: Tokens, vocab: int, then: int | None = None) -> npt.NDArray[np.float64]:
        """Return the log probabilities [V] of what follows tokens [n].

        A bias makes it choose `then`, for it tells nothing where its choice is a part of a character; the
        probabilities are those before the bias.
        """
        found = np.full(vocab, -np.inf)
        bias = {} if then is None else {"logit_bias": [[then, 1e4]]}
        for entry in self._entries(tokens, n_probs=vocab, **bias)[0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def greedy(self, tokens: Tokens, count: int) -> list[int]:
        """Return the `count` tokens it writes behind these."""
        return [entry["id"] for entry in self._entries(tokens, n_predict=count, n_probs=1, ignore_eos=True)]

    def nats(self, window: Tokens) -> npt.NDArray[np.float64]:
        """Return the negative log probabilities [T - 1] of a window's tokens but the first.

        A bias makes it choose the token that comes next; the probability it tells is that before the bias. Of
        a token that ends inside a character it tells none: NaN, the same ones whatever the file.
        """
        nats = np.full(len(window) - 1, np.nan)
        for n in range(1, len(window)):
            prompt = [int(token) for token in window[:n]]
            answer = self.complete(prompt, n_probs=1, logit_bias=[[int(window[n]), 1e4]])
            if (told := answer["choices"][0]["logprobs"]) is not None:
                (entry,) = told["content"]
                assert entry["id"] == window[n]
                nats[n - 1] = -float(entry["logprob"])
        assert np.isnan(nats).mean() < 0.05
        return nats


def transformers_model(path: Path, dequantize: bool = False) -> Any:
    """Load a folder with transformers in float32; every key must be known and found."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = {"dtype": torch.float32, "output_loading_info": True}
    if dequantize:
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    assert not any(info.values()), info
    return model.eval()


def gptq_model(path: Path) -> Any:
    """Load a GPTQ folder with auto-round, whose torch backend runs on a CPU, and undo its float16."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("auto_round")
    safetensors = pytest.importorskip("safetensors.numpy")
    # auto-round calls zero points that are stored as they are its own packing.
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= {"quant_method": "auto-round", "packing_format": "auto_round"}
    (path / "config.json").write_text(json.dumps(config))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, device_map="cpu", output_loading_info=True
    )
    unexpected = info.pop("unexpected_keys")
    assert all(key.endswith(".g_idx") for key in unexpected)  # its own packing has none
    assert not any(info.values()), info
    # It loads in float16, whatever it is told: what is no integer comes back from the file and configuration.
    torch.nn.Module.float(model)
    tensors = safetensors.load_file(path / "model.safetensors")
    floats = {k: torch.from_numpy(v.astype(np.float32)) for k, v in tensors.items() if k.endswith(".weight")}
    model.load_state_dict(floats, strict=False)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


def torch_logits(model: Any, tokens: Tokens) -> Logits:
    """Return the logits [N, T, V] of a model of transformers."""
    import torch

    with torch.no_grad():
        found: Logits = (
            model(torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits.float().numpy()
        )
    return found

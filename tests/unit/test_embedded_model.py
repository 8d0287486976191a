"""The embedded model: files consistent with one another, and an outlier rescale that changes nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from omniquant.embedded import EMBEDDED_NAME, embedded_model_path, evaluation_text
from omniquant.embedded.architecture import Architecture
from omniquant.embedded.export import Figures, model_card
from omniquant.embedded.outliers import (
    PLANS,
    OutlierPlan,
    Weights,
    add_outliers,
    scale_norm_channel,
    scale_value_channel,
)

FloatArray = NDArray[np.float32]
TINY = Architecture(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)


def _config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((embedded_model_path() / "config.json").read_text(encoding="utf-8"))
    return config


def _safetensors() -> tuple[dict[str, Any], bytes]:
    data = (embedded_model_path() / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _expected_shapes(arch: Architecture) -> dict[str, list[int]]:
    hidden, inner = arch.hidden_size, arch.intermediate_size
    queries = arch.num_attention_heads * arch.head_dim
    keys = arch.num_key_value_heads * arch.head_dim
    per_layer = {
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    shapes = {"model.embed_tokens.weight": [arch.vocab_size, hidden], "model.norm.weight": [hidden]}
    for layer in range(arch.num_hidden_layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in per_layer.items()}
    return shapes


def _random_weights(arch: Architecture) -> Weights:
    generator = np.random.default_rng(1)
    shapes = _expected_shapes(arch)
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def _rms_norm(hidden: FloatArray, gain: FloatArray) -> FloatArray:
    scale = np.float32(1) / np.sqrt(np.mean(hidden * hidden, axis=-1, keepdims=True) + np.float32(1e-5))
    normalized: FloatArray = hidden * scale * gain
    return normalized


def test_folder_is_small_and_complete() -> None:
    folder = embedded_model_path()
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum((folder / name).stat().st_size for name in names) <= 6_000_000


def test_card_names_the_model() -> None:
    assert EMBEDDED_NAME in (embedded_model_path() / "README.md").read_text(encoding="utf-8")


def test_card_lists_every_trial_of_the_outliers() -> None:
    trials = tuple(zip(PLANS[:4], (17.0, 21.0, 23.0, 34.0), strict=True))
    figures = Figures(1_246_592, 100, 1.5, 32.0, "3.11", full=15.0, trials=trials, target=1.7)
    committed = (embedded_model_path() / "README.md").read_text(encoding="utf-8")
    for card in (model_card(Architecture(), figures), committed):
        rows = [line.split("|")[1:3] for line in card.splitlines() if line.startswith(("| 1 |", "| 8"))]
        assert [tuple(tuple(map(int, cell.split(","))) for cell in row) for row in rows] == [
            (plan.norm_factors or (1,), plan.value_factors or (1,)) for plan in PLANS[:4]
        ]
        assert "chosen on the evaluation text" in card


def test_config_is_that_of_the_training_script() -> None:
    assert _config() == json.loads(json.dumps(Architecture().to_config()))


def test_tensor_names_shapes_and_types_agree_with_config() -> None:
    header, data = _safetensors()
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {name: entry["shape"] for name, entry in header.items()} == _expected_shapes(Architecture())
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data)


def test_weights_are_finite_and_norms_have_outliers() -> None:
    header, data = _safetensors()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = np.abs(np.frombuffer(data[begin:end], dtype="<f4"))
        assert np.isfinite(values).all(), name
        if name.endswith("layernorm.weight"):
            assert values.max() > 5 * np.median(values), name


def test_tokenizer_round_trips_text() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(embedded_model_path() / "tokenizer.json"))
    config = _config()
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("<s>") == config["bos_token_id"]
    assert tokenizer.token_to_id("</s>") == config["eos_token_id"]
    for text in (evaluation_text()[:5000], "naïve façade\t\u4e2d\U0001f600\r\n  x", " ", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_missing_weights_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("omniquant.embedded.files", lambda _: tmp_path)
    with pytest.raises(FileNotFoundError, match=EMBEDDED_NAME):
        embedded_model_path()


def test_norm_channel_rescale_is_exact() -> None:
    generator = np.random.default_rng(2)
    hidden = generator.standard_normal((5, 16), dtype=np.float32)
    weights: Weights = {
        "norm": generator.standard_normal(16, dtype=np.float32),
        "linear": generator.standard_normal((7, 16), dtype=np.float32),
    }
    before = _rms_norm(hidden, weights["norm"]) @ weights["linear"].T
    scale_norm_channel(weights, "norm", ("linear",), channel=3, factor=16)
    normalized = _rms_norm(hidden, weights["norm"])
    assert np.abs(normalized[:, 3]).max() > np.abs(np.delete(normalized, 3, axis=1)).max()
    np.testing.assert_array_equal(normalized @ weights["linear"].T, before)


def test_value_channel_rescale_is_exact_for_shared_heads() -> None:
    weights = _random_weights(TINY)
    generator = np.random.default_rng(3)
    hidden = generator.standard_normal((6, 16), dtype=np.float32)
    attention = np.abs(generator.standard_normal((4, 6, 6), dtype=np.float32))
    prefix = "model.layers.0.self_attn"

    def attend() -> FloatArray:
        values = (hidden @ weights[f"{prefix}.v_proj.weight"].T).reshape(6, 2, 4)
        mixed = [attention[head] @ values[:, head // 2] for head in range(4)]
        product: FloatArray = np.concatenate(mixed, axis=1) @ weights[f"{prefix}.o_proj.weight"].T
        return product

    before = attend()
    scale_value_channel(weights, prefix, TINY, channel=5, factor=8)
    np.testing.assert_array_equal(attend(), before)


def test_add_outliers_keeps_every_product_of_gain_and_column() -> None:
    weights = _random_weights(TINY)
    rescaled = add_outliers(weights, TINY, OutlierPlan((32, 16, 8), (8, 4, 2)))
    for layer in range(TINY.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for norm, linear in (
            ("input_layernorm", "self_attn.q_proj"),
            ("input_layernorm", "self_attn.k_proj"),
            ("post_attention_layernorm", "mlp.gate_proj"),
            ("post_attention_layernorm", "mlp.up_proj"),
        ):
            gain, matrix = f"{prefix}.{norm}.weight", f"{prefix}.{linear}.weight"
            assert np.count_nonzero(rescaled[gain] != weights[gain]) == 3
            np.testing.assert_array_equal(rescaled[gain] * rescaled[matrix], weights[gain] * weights[matrix])
    for untouched in (
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.mlp.down_proj.weight",
    ):
        np.testing.assert_array_equal(rescaled[untouched], weights[untouched])


def test_plans_allow_only_powers_of_two() -> None:
    assert len(PLANS) > 1
    with pytest.raises(ValueError, match="power of two"):
        OutlierPlan((12,), ())

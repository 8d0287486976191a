"""What a format cannot hold is refused before anything is written, with the reason and what works instead."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from exports import embedded_result
from small_run import small_model, small_tokens

import omniquant
from omniquant.blockfile import BlockState
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.errors import CheckpointError, ConfigError, UnsupportedError
from omniquant.export.foreseen import told_short_groups
from omniquant.export.refusals import Wish
from omniquant.export.table import FORMATS, format_of, refuse
from omniquant.models.spec import BlockSpec

TINY = BlockSpec(hidden_size=128, ffn_size=384, num_heads=8, num_kv_heads=4, head_dim=16)
TURNED = replace(TINY, rotate_heads=True, rotate_down=True)
EXPERTS = replace(TINY, num_experts=4, experts_per_token=2)
PARALLEL = replace(TINY, residual="parallel")
NARROW = replace(TINY, num_kv_heads=1)
STORIES = BlockSpec(hidden_size=64, ffn_size=172, num_heads=8, num_kv_heads=4, head_dim=8)
SMOL = BlockSpec(hidden_size=576, ffn_size=1536, num_heads=9, num_kv_heads=3, head_dim=64)

ONLINE = "cannot hold an online map (a full matrix behind each norm); nearest: calibrate with --norm-map"

ROTATED = "cannot hold online rotations (before o and down); nearest: calibrate with --rotation folded"

KRONECKER = "cannot hold online maps on the inputs of linears; nearest: calibrate with --input-map none"

CASES = [
    *(
        (format, "W4A16g32", TURNED, {"rotation": "online"}, ROTATED)
        for format in ("huggingface", "compressed-tensors", "gptq", "awq", "gguf")
    ),
    *(
        (format, "W4A16g32", TINY, {"input_map": "kronecker"}, KRONECKER)
        for format in ("huggingface", "compressed-tensors", "gptq", "awq", "gguf", "onnx", "openvino")
    ),
    *(
        (format, "W4A16g32", replace(TINY, norm="layer"), {}, "a block of layer norm, gated MLP; nearest:")
        for format in ("onnx", "openvino")
    ),
    *(
        (
            format,
            "W4sA16g32",
            EXPERTS,
            {},
            "a mixture of experts; nearest: compressed-tensors, gguf or huggingface",
        )
        for format in ("gptq", "awq")
    ),
    *(
        (
            format,
            "W4sA16g32",
            EXPERTS,
            {},
            "a model with num_experts, experts_per_token; nearest: huggingface",
        )
        for format in ("onnx", "openvino")
    ),
    ("compressed-tensors", "W4A16g32", EXPERTS, {}, "transformers does not read; nearest: scheme W4sA16g32"),
    ("compressed-tensors", "W8sA8sfKV16", EXPERTS, {}, "experts with quantized activations, which"),
    ("onnx", "W4A16g32", PARALLEL, {}, "a model with residual; nearest: huggingface"),
    ("huggingface", "W4A4", TINY, {}, "quantized activations, Q, K or V (W4A4); nearest: --weights-only"),
    ("huggingface", "W3A16", TINY, {"norm_map": "online"}, ONLINE),
    ("compressed-tensors", "W16A16", TINY, {}, "weights in float (W16A16); nearest: huggingface"),
    ("compressed-tensors", "W4A16", TINY, {"norm_map": "online"}, ONLINE),
    ("compressed-tensors", "W4A4", TINY, {}, "quantized Q, K and V; nearest: scheme W4A4sfKV16"),
    ("compressed-tensors", "W8sA8s", TINY, {}, "quantized Q, K and V; nearest: scheme W8sA8sfKV16"),
    (
        "compressed-tensors",
        "W4A4KV16",
        TINY,
        {},
        "asymmetric activations (W4A4KV16); nearest: scheme W4A4sfKV16, or --weights-only",
    ),
    (
        "compressed-tensors",
        "W8sA8sKV16",
        TINY,
        {},
        "the step of s (it has that of sf) (W8sA8sKV16); nearest: scheme W8sA8sfKV16",
    ),
    (
        "compressed-tensors",
        "W4sA8sfKV16",
        TINY,
        {"lac": True},
        "clipped activations; nearest: calibrate with --no-lac, or --weights-only",
    ),
    ("gptq", "W4A16g32", NARROW, {}, "k with 16 outputs, no multiple of 32; nearest: "),
    ("gptq", "W4A16", TINY, {"norm_map": "online"}, ONLINE),
    ("gptq", "W16A16", TINY, {}, "weights in float (W16A16); nearest: huggingface"),
    ("gptq", "W4A8", TINY, {}, "quantized activations, Q, K or V (W4A8); nearest: --weights-only"),
    ("gptq", "W5A16", TINY, {}, "5-bit weights; nearest: scheme W8A16"),
    ("gptq", "W4A16", STORIES, {}, "down with 172 inputs, no multiple of 32; nearest: compressed-tensors"),
    (
        "gptq",
        "W4A16g48",
        TINY,
        {},
        "groups of 48, of which q with 128 inputs is no multiple; nearest: scheme",
    ),
    ("awq", "W3A16", TINY, {}, "3-bit weights; nearest: scheme W4A16"),
    ("awq", "W4A16", TINY, {"norm_map": "online"}, ONLINE),
    ("awq", "W4A4", TINY, {}, "quantized activations, Q, K or V (W4A4)"),
    ("awq", "W4A16", STORIES, {}, "down with 172 inputs, no multiple of 8; nearest: compressed-tensors"),
    ("onnx", "W4A4", TINY, {}, "quantized activations, Q, K or V (W4A4); nearest: --weights-only"),
    ("onnx", "W3A16g32", TINY, {}, "3-bit weights in MatMulNBits; nearest: --variant dequantize-linear"),
    ("onnx", "W4A16", TINY, {}, "groups of 384 (down) in MatMulNBits: they are powers of two, at least 16"),
    ("onnx", "W4A16g8", TINY, {}, "groups of 8 (q) in MatMulNBits: they are powers of two, at least 16"),
    ("onnx", "W4A16g64", STORIES, {}, "groups of 64, of which down with 172 inputs is no multiple; nearest"),
    ("openvino", "W4A4", TINY, {}, "quantized activations, Q, K or V (W4A4); nearest: --weights-only"),
    ("openvino", "W4A16g64", STORIES, {}, "groups of 64, of which down with 172 inputs is no multiple"),
    ("gguf", "W4A4", TINY, {}, "quantized activations, Q, K or V (W4A4); nearest: --weights-only"),
    ("gguf", "W4A16", TINY, {"norm_map": "online"}, ONLINE),
    ("gguf", "W3A16", TINY, {}, "3-bit weights; nearest: scheme W4A16"),
    ("gguf", "W6A16g64", TINY, {}, "6-bit weights; nearest: scheme W8sA16g64"),
    ("gguf", "W8A16", TINY, {}, "asymmetric 8-bit weights; nearest: scheme W8sA16"),
    ("gguf", "W4A16", STORIES, {}, "down with 172 inputs, no multiple of 32; nearest: compressed-tensors"),
    ("gguf", "W4A16g16", TINY, {}, "groups of 16: they are multiples of 32; nearest: scheme W4A16g32"),
    ("gguf", "W4A16g48", TINY, {}, "groups of 48, of which q with 128 inputs is no multiple; nearest"),
    (
        "gguf",
        "W4A16g128",
        SMOL,
        {},
        "groups of 128, of which q with 576 inputs is no multiple; nearest: scheme W4A16g96",
    ),
    (
        "compressed-tensors",
        "W4A16g64",
        STORIES,
        {},
        "groups of 64, of which down with 172 inputs is no multiple; nearest: scheme W4A16g4",
    ),
]


def wish(format: str, scheme: str, spec: BlockSpec, weights_only: bool = False, **changes: str) -> Wish:
    config = QuantConfig.parse(scheme)
    method = "affinequant" if changes else "rtn"
    options = CalibrationOptions.for_method(method, config, **changes)
    _, variant = format_of(format, None)
    return Wish(format, variant, config, options, spec, weights_only)


@pytest.mark.parametrize(("format", "scheme", "spec", "changes", "message"), CASES)
def test_what_a_format_cannot_hold(format, scheme, spec, changes, message):
    with pytest.raises(UnsupportedError, match=re.escape(message)) as error:
        refuse(wish(format, scheme, spec, **changes))
    assert str(error.value).startswith(f"{format} cannot hold ")


@pytest.mark.parametrize(("format", "scheme", "spec", "changes", "message"), CASES)
def test_the_nearest_scheme_that_is_named_works(format, scheme, spec, changes, message):
    with pytest.raises(UnsupportedError) as error:
        refuse(wish(format, scheme, spec, **changes))
    named = re.search(r"nearest: scheme (\S+?),?(?: |$)", str(error.value))
    if named is not None:
        variant = {"variant": "dequantize-linear"} if "--variant" in str(error.value) else {}
        refuse(replace(wish(format, named[1], spec), **variant))


def test_graphs_hold_online_maps_and_the_standard_operator_any_bits():
    refuse(wish("openvino", "W3A16", TINY, norm_map="online"))
    refuse(wish("onnx", "W4A16g32", TINY, norm_map="online"))
    refuse(replace(wish("onnx", "W3A16", TINY), variant="dequantize-linear"))


def test_weights_alone_may_leave_activations_out():
    for format in ("huggingface", "compressed-tensors"):
        refuse(wish(format, "W4A4", TINY, weights_only=True))


def test_a_refused_export_writes_nothing(tmp_path):
    result = embedded_result("W4A4")
    with pytest.raises(UnsupportedError, match="quantized activations"):
        result.export(tmp_path / "out", "huggingface")
    assert list(tmp_path.iterdir()) == []


def test_a_target_is_refused_before_the_calibration(tmp_path):
    model = small_model(tmp_path / "model")
    with pytest.raises(UnsupportedError, match="compressed-tensors cannot hold groups of 16"):
        omniquant.calibrate(model, small_tokens(), "W4A16g16", target="compressed-tensors", progress=False)


def test_a_bias_without_a_slot_is_refused(tmp_path, monkeypatch):
    result = embedded_result("W4A16")
    state = result.state(0)
    folded = state.folded | {"q.bias": np.zeros(128, np.float32)}
    monkeypatch.setattr(type(result), "state", lambda self, index: BlockState(folded, {}))
    message = r"block 0: q.bias: a shift left a bias, but the architecture has no slot.*shift=False"
    with pytest.raises(UnsupportedError, match=message):
        result.export(tmp_path / "out", "huggingface")
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_variants():
    with pytest.raises(ConfigError, match=r"format 'exl2' is not one of compressed-tensors, "):
        format_of("exl2")
    with pytest.raises(ConfigError, match="huggingface: variant 'v1' does not exist, there is: none"):
        format_of("huggingface", "v1")


def test_a_missing_package_is_one_line(monkeypatch):
    import omniquant.export.table as table

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(table, "import_module", missing)
    for name, entry in FORMATS.items():
        if entry.needs:
            with pytest.raises(UnsupportedError, match=rf"needs the {entry.needs[0]} package: pip install"):
                entry.writer(name)


def test_an_unfinished_result_is_refused(tmp_path):
    result = embedded_result("W4A16")
    result.header.model["num_layers"] = 6
    with pytest.raises(CheckpointError, match="unfinished"):
        result.export(tmp_path / "out", "huggingface")


@pytest.mark.parametrize(
    ("format", "scheme", "own", "message"),
    [
        (
            "gptq",
            "W4A16g32",
            "W8A16g32",
            "mixed precision (1 linears other than W4A16g32); nearest: compressed",
        ),
        ("awq", "W4A16g32", "W16A16", "mixed precision"),
        ("gguf", "W4A16g32", "W3A16g32", "3-bit weights; nearest: scheme W4A16g32"),
        ("gguf", "W4A16g32", "W8A16g32", "asymmetric 8-bit weights"),
        ("gguf", "W4A16g32", "W4A16g16", "groups of 16: they are multiples of 32"),
        ("onnx", "W4A16g32", "W3A16g32", "3-bit weights in MatMulNBits; nearest: --variant"),
        ("onnx", "W4A16g32", "W8A16g48", "groups of 48"),
        ("compressed-tensors", "W4sA16g32", "W8sA16g48", "groups of 48"),
        ("compressed-tensors", "W4sA16g32", "W8A16", "asymmetric weights (W8A16) in mixed precision"),
        ("compressed-tensors", "W8sA8sfKV16", "W8A8KV16", "asymmetric activations"),
        ("huggingface", "W4A16g32", "W8A8KV16", "quantized activations"),
    ],
)
def test_every_scheme_of_a_mixture_must_fit(format, scheme, own, message):
    simple = wish(format, scheme, TINY)
    overrides = (("layers.0.q", QuantConfig.parse(own)),)
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        refuse(replace(simple, scheme=replace(simple.scheme, overrides=overrides)))


def test_linears_that_are_one_tensor_have_one_scheme():
    """Phi-3 keeps q, k and v in one tensor, and gate and up in another."""
    simple = replace(
        wish("gguf", "W4sA16g32", TINY), fused=(("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
    )
    eight = QuantConfig.parse("W8sA16g32")

    def mixed(*names):
        overrides = tuple((f"layers.2.{name}", eight) for name in names)
        return replace(simple, scheme=replace(simple.scheme, overrides=overrides))

    refuse(mixed("q", "k", "v", "down"))
    with pytest.raises(UnsupportedError, match=r"q, k, v of block 2 at different bits: they are one tensor"):
        refuse(mixed("q", "k"))
    with pytest.raises(UnsupportedError, match=r"gate, up of block 2 at different bits"):
        refuse(replace(mixed("up"), format="compressed-tensors"))


def test_experts_in_mixed_precision_are_refused():
    spec = replace(TINY, num_experts=4, experts_per_token=2)
    simple = wish("compressed-tensors", "W4sA16g32", spec)
    refuse(simple)
    overrides = (("layers.0.q", QuantConfig.parse("W8sA16g32")),)
    with pytest.raises(UnsupportedError, match="experts in mixed precision"):
        refuse(replace(simple, scheme=replace(simple.scheme, overrides=overrides)))


def test_a_wish_knows_what_is_one_tensor(tmp_path):
    model = small_model(tmp_path / "model")
    options = CalibrationOptions.for_method("rtn", QuantConfig.parse("W4A16"))
    found = Wish.of(model, "gguf", "", QuantConfig.parse("W4A16"), options)
    assert found.fused == (("q",), ("k",), ("v",), ("o",), ("gate",), ("up",), ("down",))


@pytest.mark.parametrize("format", FORMATS)
def test_who_is_said_to_refuse_short_groups_does(format):
    asked = wish(format, "W4sA16g48", TINY)
    (told,) = told_short_groups(asked.scheme, TINY)
    assert told.startswith("groups of 48: q with 128 inputs and 5 others end in a shorter one, which ")
    if format in told:
        with pytest.raises(UnsupportedError, match="groups of 48, of which q with 128 inputs is no multiple"):
            refuse(asked)
    else:
        refuse(asked)

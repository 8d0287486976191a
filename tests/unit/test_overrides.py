"""Patterns of linears and their schemes: which match, which counts, and what makes no sense."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from omniquant import QuantConfig
from omniquant.config.overrides import with_overrides
from omniquant.errors import ConfigError

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
THEIRS = {
    name: f"model.layers.{{}}.{'mlp' if name in ('gate', 'up', 'down') else 'self_attn'}.{name}_proj"
    for name in LINEARS
}
NAMES = {f"layers.{i}.{name}": (THEIRS[name].format(i),) for i in range(12) for name in LINEARS}
BASE = QuantConfig.parse("W4A16g32")


def bits(scheme: QuantConfig) -> dict[str, int]:
    """Return the bits of every linear that has a scheme of its own."""
    return {name: own.w_bits for name, own in scheme.overrides}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layers.0.q", ["layers.0.q"]),
        ("model.layers.0.self_attn.q_proj", ["layers.0.q"]),
        ("model.layers.0.self_attn.q_proj.weight", ["layers.0.q"]),
        ("model.layers.1.*", [f"layers.1.{name}" for name in LINEARS]),
        ("layers.1?.down", ["layers.10.down", "layers.11.down"]),
        ("*.[qk]_proj", [f"layers.{i}.{name}" for i in range(12) for name in ("q", "k")]),
        ("*", list(NAMES)),
    ],
)
def test_patterns_match_both_names(pattern, expected):
    scheme = with_overrides(BASE, {pattern: "W8A16"}, NAMES)
    assert bits(scheme) == dict.fromkeys(expected, 8)
    for name in NAMES:
        _, layer, linear = name.split(".")
        assert scheme.block(int(layer))[linear].bits == (8 if name in expected else 4)
    assert str(scheme) == "W4A16g32 mixed"
    assert scheme.text == "W4A16g32"


def test_the_last_match_counts_and_schemes_are_complete():
    scheme = with_overrides(BASE, ["layers.0.*=W8A16", "*.down=W3sA16g8", "layers.0.down=W2A16"], NAMES)
    assert scheme.block(0)["down"] == QuantConfig.parse("W2A16").uniform()
    assert scheme.block(0)["up"] == QuantConfig.parse("W8A16").uniform()
    assert scheme.block(3)["down"] == QuantConfig.parse("W3sA16g8").uniform()
    again = with_overrides(BASE, ["layers.0.down=W2A16", "*.down=W4A16g32"], NAMES)
    assert again == BASE  # back at what all have: nothing differs
    assert with_overrides(scheme, [], NAMES) == scheme
    assert with_overrides(BASE, {"layers.0.q": QuantConfig.parse("W8A16")}, NAMES).overrides[0][1].w_bits == 8


def test_float_skips_weights_and_of_a_whole_block_inputs_too():
    base = QuantConfig.parse("W4A4")
    part = with_overrides(base, ["layers.0.down=float"], NAMES)
    assert not part.block(0)["down"].quantized
    assert part.activation(0) == base.activation()
    whole = with_overrides(base, ["model.layers.2.*=float"], NAMES)
    assert not any(whole.block(2)[name].quantized for name in LINEARS)
    assert (whole.activation(2)["bits"], whole.activation(1)["bits"]) == (16, 4)
    assert whole.activation(2)["k_bits"] == 4  # Q, K and V are the model's
    both = with_overrides(base, ["layers.1.*=W8A8", "layers.1.down=float"], NAMES)
    assert (both.activation(1)["bits"], both.of_linear(1, "down").text) == (8, "W16A8")


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (["layers.0.q"], "override 'layers.0.q': expected PATTERN=SCHEME"),
        (["=W4A16"], "expected PATTERN=SCHEME"),
        ("layers.0.q=W4A16", "expected a list"),
        (["layers.0.q=W4"], "override 'layers.0.q': scheme 'W4' is not understood"),
        (["layers.0.q=W9A16"], "override 'layers.0.q': scheme 'W9A16'"),
        (["layers.0.q=floats"], "or float"),
        (["layers.12.q=W4A16"], "override 'layers.12.q' matches no linear; names are such as layers.0.q or"),
        (["model.embed_tokens=W8A16"], "matches no linear"),
        (["layers.0.*=W8A8KV4"], "W8A8KV4: Q, K and V have the bits of the model's scheme"),
        (
            ["layers.0.down=W4A8"],
            "layers.0.q with A16 and layers.0.down with A8: the linears of a block share",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(wishes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_overrides(BASE, wishes, NAMES)


def test_overrides_of_a_config_must_name_linears_of_the_model():
    scheme = replace(BASE, overrides=(("layers.99.q", QuantConfig.parse("W8A16")),))
    with pytest.raises(ConfigError, match=r"'layers.99.q' names no linear"):
        with_overrides(scheme, [], NAMES)


def test_mixed_schemes_say_what_they_quantize():
    skipped = with_overrides(QuantConfig.parse("W4A4KV16"), ["*=float"], NAMES)
    assert not skipped.block(0)["q"].quantized
    eight = with_overrides(QuantConfig.parse("W16A16"), ["*.down=W8A16"], NAMES)
    assert eight.quantizes_weights
    assert eight.weight_only
    assert not with_overrides(BASE, ["layers.0.*=W4A8"], NAMES).weight_only

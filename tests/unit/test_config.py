"""Schemes and options: what is accepted, what it means, and what nonsense is told."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniquant.config import METHODS, CalibrationOptions, QuantConfig, core_options
from omniquant.config.method import config_hash
from omniquant.errors import ConfigError

BITS = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16])


@pytest.mark.parametrize(
    ("text", "weights", "activations", "group", "qkv"),
    [
        ("W4A4", 4, 4, None, (4, 4, 4)),
        ("W3A16", 3, 16, None, (16, 16, 16)),
        ("W2A16g64", 2, 16, 64, (16, 16, 16)),
        ("W6A6", 6, 6, None, (6, 6, 6)),
        ("W8A8", 8, 8, None, (8, 8, 8)),
        ("W4A4KV16", 4, 4, None, (16, 16, 16)),
        ("W4A4KV8", 4, 4, None, (4, 8, 8)),
        ("W4A4KV4", 4, 4, None, (4, 4, 4)),
        ("W4A8Q8K4V3g32", 4, 8, 32, (8, 4, 3)),
        ("W4A16KV8", 4, 16, None, (16, 8, 8)),
        ("w4a32g128", 4, 32, 128, (16, 16, 16)),
        ("W4A16g128KV8", 4, 16, 128, (16, 8, 8)),
        ("W16A16", 16, 16, None, (16, 16, 16)),
        ("W4sA4ssink4", 4, 4, None, (4, 4, 4)),
        ("W4A16KV4sink64g128", 4, 16, 128, (16, 4, 4)),
    ],
)
def test_parse_means_what_the_papers_mean(text, weights, activations, group, qkv):
    config = QuantConfig.parse(text)
    assert (config.w_bits, config.a_bits, config.group_size) == (weights, activations, group)
    assert (config.q_bits, config.k_bits, config.v_bits) == qkv
    assert QuantConfig.parse(str(config)) == config


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("w4a4kv4", "W4A4"),
        ("W4A16g64KV8", "W4A16KV8g64"),
        ("W8sA8sf", "W8sA8sf"),
        ("W4A4g64SINK2", "W4A4sink2g64"),
    ],
)
def test_str_is_canonical(text, canonical):
    assert str(QuantConfig.parse(text)) == canonical


@given(
    w=BITS,
    a=st.one_of(BITS, st.just(32)),
    group=st.one_of(st.none(), st.integers(1, 4096)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    qkv=st.tuples(*[st.one_of(st.none(), BITS)] * 3),
)
def test_every_valid_config_survives_str_and_parse(w, a, group, flags, qkv):
    config = QuantConfig(
        w, a, group if w < 16 else None, flags[0], flags[1], *qkv, a_full_range=flags[1] and flags[2]
    )
    assert QuantConfig.parse(str(config)) == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "W4",
        "A4",
        "4A4",
        "W0A4",
        "W1A4",
        "W9A4",
        "W4A9",
        "W4A4g0",
        "W4A4KV1",
        "W4A4KV8KV4",
        "W4A4KV8V4",
        "W4A4x",
        "W4 A4",
        "W16A16g64",
        "W4A4f",
        "W4A4sink",
        "W4A4sink65",
        "W4A4KV16sink4",
        "W-4A4",
        "W\uff14A\uff14",
        "w4a4g99999999999",
        "W4A4g64g64",
        "W4A16G",
    ],
)
def test_nonsense_names_the_text_and_what_is_allowed(text):
    with pytest.raises(ConfigError) as caught:
        QuantConfig.parse(text)
    assert repr(text) in str(caught.value)
    assert "W2A16g64" in str(caught.value)


@pytest.mark.parametrize("bad", [True, 4.0, "4", None])
def test_bits_must_be_whole_numbers(bad):
    with pytest.raises((ConfigError, TypeError)):
        QuantConfig(bad, 4)


def test_config_is_frozen_and_never_text_only():
    config = QuantConfig.parse("W4A4")
    with pytest.raises(FrozenInstanceError):
        config.w_bits = 3
    with pytest.raises(ConfigError):
        QuantConfig.parse(44)


def test_activation_dict_is_the_contract():
    assert QuantConfig.parse("W4A4KV8").activation() == {
        "bits": 4, "q_bits": 4, "k_bits": 8, "v_bits": 8, "symmetric": False, "full_range": False,
        "sink_tokens": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "group", "expected"), [(172, 64, 3), (128, 64, 2), (5, None, 1), (5, 8, 1)]
)
def test_groups_count_the_short_last_one(inputs, group, expected):
    assert QuantConfig(4, 16, group).groups(inputs) == expected


def test_above_four_bits_omniquant_keeps_rates_and_order():
    config = QuantConfig.parse("W6A6")
    options = CalibrationOptions.for_method("omniquant", config)
    assert (options.schedule, options.lr_let, options.shuffle) == ("constant", 5e-3, False)
    chosen = CalibrationOptions.for_method("omniquant", config, schedule="cosine", shuffle=True)
    assert (chosen.schedule, chosen.lr_let, chosen.shuffle) == ("cosine", 1e-2, True)
    assert CalibrationOptions.for_method("affinequant", config).schedule == "cosine"


@pytest.mark.parametrize("scheme", ["W4A4", "W3A16", "W2A16g64"])
def test_defaults_are_the_papers(scheme):
    config = QuantConfig.parse(scheme)
    options = {method: CalibrationOptions.for_method(method, config) for method in METHODS}
    for method in ("rtn", "smoothquant"):
        assert (options[method].epochs, options[method].lwc, options[method].qk_map) == (0, False, "none")
    assert (options["rtn"].norm_map, options["smoothquant"].norm_map) == ("none", "diagonal")
    for method in ("omniquant", "affinequant"):
        assert options[method].epochs == (40 if config.w_bits == 2 else 20)
        assert options[method].lwc
        assert (options[method].lr_lwc, options[method].schedule) == (1e-2, "cosine")
        assert options[method].lr_let == (1e-2 if method == "omniquant" else 5e-3)
        short = CalibrationOptions.for_method(method, config, epochs=5)
        assert (short.lr_lwc, short.lr_let, short.schedule) == (1e-2, 5e-3, "constant")
        assert options[method].aug_loss == (scheme != "W3A16")
    affine = options["affinequant"]
    assert (affine.norm_map, affine.vo_map, affine.qk_map) == ("diagonal", "affine", "full")
    assert affine.up_down == (not config.weight_only)


def test_omniquant_keeps_to_equivalences_that_fold_where_only_weights_are_quantized():
    weights = CalibrationOptions.for_method("omniquant", QuantConfig.parse("W3A16"))
    both = CalibrationOptions.for_method("omniquant", QuantConfig.parse("W4A4"))
    assert (weights.norm_map, weights.vo_map, weights.qk_map) == ("diagonal", "diagonal", "none")
    assert (weights.shift, weights.up_down) == (True, True)
    assert (both.norm_map, both.vo_map, both.qk_map) == ("diagonal", "diagonal", "scale")
    assert (both.shift, both.up_down) == (True, True)


@pytest.mark.parametrize(
    ("method", "rope", "expected"),
    [
        ("omniquant", True, "tied"),
        ("omniquant", False, "scale"),
        ("affinequant", True, "rotation"),
        ("affinequant", False, "full"),
    ],
)
def test_exact_is_the_freest_map_that_commutes(method, rope, expected):
    scheme = QuantConfig.parse("W4A4")
    options = CalibrationOptions.for_method(method, scheme, qk_map="exact")
    assert core_options(scheme, options, block=0, rope=rope)["qk_map"] == expected


@pytest.mark.parametrize(
    "overrides",
    [
        {"epochs": -1}, {"epochs": 1.5}, {"epochs": True}, {"batch_size": 0}, {"lr_lwc": float("nan")},
        {"patience": -1},
        {"alpha": 2.0}, {"margin": 1.0}, {"stability": -0.1}, {"seed": -1}, {"loss": "mae"},
        {"dominance": "pray"}, {"qk_map": "half"}, {"nonsense": 1}, {"lr_let": "fast"},
    ],
)  # fmt: skip
def test_bad_options_are_named(overrides):
    with pytest.raises(ConfigError) as caught:
        CalibrationOptions.for_method("affinequant", QuantConfig.parse("W4A4"), **overrides)
    assert next(iter(overrides)) in str(caught.value)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("omniquant", {"norm_map": "online"}), ("omniquant", {"vo_map": "affine"}), ("guess", {}),
        ("rtn", {"norm_map": "diagonal"}), ("rtn", {"qk_map": "scale"}), ("smoothquant", {"qk_map": "full"}),
    ],
)  # fmt: skip
def test_combinations_that_do_not_exist_are_refused(method, overrides):
    with pytest.raises(ConfigError):
        CalibrationOptions.for_method(method, QuantConfig.parse("W4A4"), **overrides)


def test_nothing_to_learn_where_nothing_is_quantized():
    assert CalibrationOptions.for_method("rtn", QuantConfig.parse("W16A16")).epochs == 0
    with pytest.raises(ConfigError, match="quantizes nothing"):
        CalibrationOptions.for_method("omniquant", QuantConfig.parse("W16A16"))


def test_none_means_default_and_training_options_do_not_touch_rtn():
    scheme = QuantConfig.parse("W4A4")
    plain = CalibrationOptions.for_method("rtn", scheme)
    assert CalibrationOptions.for_method("rtn", scheme, epochs=7, aug_loss=True, alpha=None) == plain


def test_options_survive_a_dict_and_a_wrong_dict_is_refused():
    options = CalibrationOptions.for_method("affinequant", QuantConfig.parse("W4A4"), seed=3)
    assert CalibrationOptions.from_dict(options.to_dict()) == options
    with pytest.raises(ConfigError, match="'seed' is missing"):
        CalibrationOptions.from_dict({k: v for k, v in options.to_dict().items() if k != "seed"})
    with pytest.raises(ConfigError, match="'more' is unknown"):
        CalibrationOptions.from_dict(options.to_dict() | {"more": 1})


def test_core_options_hold_every_key_of_the_contract():
    scheme = QuantConfig.parse("W2A16g64")
    options = CalibrationOptions.for_method("affinequant", scheme, norm_map="online")
    core = core_options(scheme, options, block=3, rope=True)
    outside = {"method", "aug_loss", "look_ahead", "target", "rotation", "embedding_bits", "head_bits"}
    learned = set(asdict(options)) - outside
    weights = {"w_bits", "group_size", "w_symmetric", "scale_bits", "linears"}
    assert set(core) == learned | weights | {"block", "activation"}
    assert (core["block"], core["group_size"], core["norm_map"]) == (3, 64, "online")


def test_hash_sees_every_difference():
    scheme = QuantConfig.parse("W4A4")
    options = CalibrationOptions.for_method("omniquant", scheme)
    hashes = {
        config_hash(scheme, options),
        config_hash(scheme, replace(options, seed=1)),
        config_hash(QuantConfig.parse("W4A8"), options),
    }
    assert len(hashes) == 3
    assert config_hash(QuantConfig.parse("w4a4"), replace(options)) in hashes


@pytest.mark.parametrize(
    ("scheme", "method", "rounding", "rotation"),
    [
        ("W4A16", "omniquant", "learned", "none"),
        ("W2A16g64", "omniquant", "learned", "none"),
        ("W4A4", "affinequant", "learned", "online"),
        ("W6A6", "omniquant", "learned", "none"),
        ("W16A16", "rtn", "nearest", "none"),
    ],
)
def test_auto_is_a_recipe_a_scheme(scheme, method, rounding, rotation):
    options = CalibrationOptions.for_method("auto", QuantConfig.parse(scheme))
    assert (options.method, options.rounding, options.rotation) == (method, rounding, rotation)


@pytest.mark.parametrize(
    ("scheme", "epochs"),
    [("W3A16", (3, 3, 2, 1)), ("W2A16g64", (12, 12, 6, 3)), ("W4A4", (6, 6, 3, 2)), ("W6A6", (6, 6, 3, 2))],
)
def test_auto_takes_the_fewer_epochs_the_more_windows_there_are(scheme, epochs):
    config = QuantConfig.parse(scheme)

    def of(samples):
        return CalibrationOptions.for_method("auto", config, samples=samples).epochs

    assert (of(None), of(64), of(128), of(256)) == epochs
    assert of(1) == epochs[0]
    assert of(10**6) == 1
    assert CalibrationOptions.for_method("auto", config, samples=256, epochs=9).epochs == 9
    assert CalibrationOptions.for_method("omniquant", config, samples=256).epochs in (20, 40)


@pytest.mark.parametrize(("scheme", "rates"), [("W3A16", (1, 1, 1.63)), ("W2A16g64", (3, 3, 4.24))])
def test_auto_moves_offsets_farther_in_more_steps(scheme, rates):
    config = QuantConfig.parse(scheme)

    def of(**wishes):
        return CalibrationOptions.for_method("auto", config, **wishes).lr_rounding

    assert (of(), of(samples=32), of(samples=128)) == rates
    assert of(samples=32, epochs=2000) > 10 * rates[0]
    assert of(samples=128, lr_rounding=0.5) == 0.5


def test_auto_yields_to_what_is_asked_for_and_to_what_can_be_held():
    config = QuantConfig.parse("W3A16")
    assert CalibrationOptions.for_method("auto", config, epochs=1, rounding="nearest").rounding == "nearest"
    folded = CalibrationOptions.for_method("auto", QuantConfig.parse("W4A4"), target="huggingface")
    assert (folded.rotation, folded.input_map) == ("none", "none")
    plain = CalibrationOptions.for_method("auto", QuantConfig.parse("W4A4"), online=False)
    assert (plain.rotation, plain.input_map) == ("none", "none")

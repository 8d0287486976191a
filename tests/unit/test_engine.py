"""The integer runtime against the fake-quantized path, and against itself: caches, threads, kernels."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from runnable import RandomModel

from omniquant import QuantConfig, _core
from omniquant.errors import CheckpointError, DataError
from omniquant.models.spec import BlockSpec
from omniquant.runtime.engine import Engine
from omniquant.runtime.matrix import NIBBLES, Matrix

SPEC = BlockSpec(hidden_size=32, ffn_size=40, num_heads=4, num_kv_heads=2, head_dim=8)
SPECS = {
    "grouped": SPEC,
    "one head for all": replace(SPEC, num_kv_heads=1),
    "one head each": replace(SPEC, num_kv_heads=4),
    "wide heads": replace(SPEC, num_heads=2, num_kv_heads=1, head_dim=66),
    "many heads": replace(SPEC, num_heads=70, num_kv_heads=1, head_dim=2),
    "no rope, odd heads": replace(SPEC, rope=False, head_dim=7),
    "layer norm, plain": replace(SPEC, norm="layer", mlp="plain", activation="gelu", rope=False),
    "rotations": replace(SPEC, rotate_qk=True, rotate_heads=True, rotate_down=True),
    "odd sizes": replace(SPEC, hidden_size=19, ffn_size=23, head_dim=6),
    "partly rotated, parallel": replace(SPEC, rotary_dim=4, residual="parallel", norm="layer"),
    "one shared norm": replace(SPEC, residual="shared", mlp="plain", activation="gelu"),
    "norms of heads": replace(SPEC, head_norms=True),
    "norms behind the halves": replace(SPEC, post_norms=True),
    "shaped scores": replace(SPEC, score_cap=1.5, attention_scale=0.3, window=20),
    "alibi": replace(SPEC, alibi=True, rope=False, num_heads=6, window=1),
}
TOKENS = np.random.default_rng(1).integers(0, 37, 75)
KERNELS = _core.kernel_names()
SINGLE = ["W4A16", "W3A16g8", "W8A8", "W4A4", "W4A16K5V3", "W4A32", "W2A8KV16", "W8sA8s", "W16A4", "W16A16"]
SINGLE += ["W4A4sink3", "W4A16K5V3sink20", "W4A16K16V4sink1"]


def mixed(scheme: str, **own: str) -> QuantConfig:
    overrides = [
        (f"layers.{index}.{name}", QuantConfig.parse(s)) for index in (0, 1) for name, s in own.items()
    ]
    return replace(QuantConfig.parse(scheme), overrides=tuple(overrides))


# Linears of one input at different bits, in groups, in float: integers are shared as far as they agree.
SCHEMES = [
    *SINGLE,
    pytest.param(mixed("W4A8", k="W3A8g8", v="W16A8", o="W8sA8", up="W16A8", down="W16A8"), id="mixed A8"),
    pytest.param(mixed("W16A32", q="W2A32g8", v="W4sA32", gate="W5A32g16", down="W8A32"), id="mixed A32"),
]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(
    "extras",
    [{}, {"biases": True, "online": True}, {"inputs": True}],
    ids=["plain", "biases and maps", "input maps"],
)
def test_every_kind_of_block_equals_the_float_path(spec, extras):
    model = RandomModel(spec, "W4A32", **extras)
    found = Engine(model).decoder(75).logits(TOKENS)
    np.testing.assert_allclose(found, model.expected_logits(TOKENS), rtol=0, atol=2e-5)


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_equals_fake_quantization(scheme, inputs):
    """A last bit may carry a value across a rounding boundary, here and there; the rest is equal."""
    model = RandomModel(SPEC, scheme, layers=1, biases=True, inputs=inputs)
    expected = model.expected_logits(TOKENS)
    found = Engine(model).decoder(75).logits(TOKENS)
    wrong = np.abs(found - expected).max(axis=1)
    kept_as_halves = model.scheme.k_bits == 16 and model.scheme.a_bits < 32
    # Halves keep 11 bits of a key and a value, fixed point 13 of most inputs; logits are some 6 large.
    fixed_point = model.scheme.a_bits == 16
    assert np.median(wrong) <= (6 * 2**-10 if kept_as_halves else 6 * 2**-12 if fixed_point else 1e-5)
    # Rounded to halves first, values cross 8-bit boundaries often.
    assert np.mean(wrong > (0.3 if kept_as_halves else 1e-2)) <= 0.05


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_token_has_the_same_bits_however_it_is_read(scheme):
    engine = Engine(RandomModel(SPEC, scheme, inputs=True), threads=1)
    whole = engine.decoder(75).logits(TOKENS)
    for cuts in ([1, 2, 3, 20], [64], list(range(1, 75))):
        decoder = engine.decoder(75)
        parts = [decoder.logits(part) for part in np.split(TOKENS, cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert decoder.length == 75
    decoder.rewind(10)
    np.testing.assert_array_equal(decoder.logits(TOKENS[10:40]), whole[10:40])
    np.testing.assert_array_equal(decoder.next_logits(TOKENS[40:]), whole[-1])


def test_long_texts_go_through_in_steps():
    model = RandomModel(SPEC, "W4A8", layers=1)
    model.max_positions = 1200
    tokens = np.random.default_rng(2).integers(0, 37, 1100)
    whole = Engine(model).decoder(1200).logits(tokens)
    decoder = Engine(model).decoder(1200)
    decoder.fill(tokens[:700])
    np.testing.assert_array_equal(decoder.logits(tokens[700:]), whole[700:])
    shifted = whole - whole.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted.astype(np.float64)).sum(axis=1))
    expected = (log_sum - shifted[np.arange(1100), np.roll(tokens, -1)])[:-1]
    np.testing.assert_allclose(Engine(model).decoder(1100).nll(tokens), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["W4A4", "W3A16g8", "W16A16"])
def test_threads_do_not_matter(scheme):
    model = RandomModel(replace(SPEC, hidden_size=160, ffn_size=320), scheme, vocab=300)
    tokens = np.random.default_rng(3).integers(0, 300, 130)
    one, two, four = (Engine(model, threads=n).decoder(150) for n in (1, 2, 4))
    whole = one.logits(tokens)
    np.testing.assert_array_equal(two.logits(tokens), whole)
    np.testing.assert_array_equal(four.logits(tokens), whole)
    for _ in range(20):
        np.testing.assert_array_equal(two.next_logits([5]), one.next_logits([5]))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scheme", ["W4A16K5V3", "W8A8", "W4A32", "W4A4"])
def test_every_instruction_set_gives_the_same_bits(kernel, scheme):
    model = RandomModel(replace(SPEC, head_dim=24), scheme, layers=1)
    found = Engine(model, kernel=kernel).decoder(75).logits(TOKENS)
    np.testing.assert_array_equal(found, Engine(model).decoder(75).logits(TOKENS))
    decoder = Engine(model, kernel=kernel).decoder(75)
    parts = [decoder.logits(part) for part in np.split(TOKENS, [1, 2, 5, 40])]
    np.testing.assert_array_equal(np.concatenate(parts), found)


@pytest.mark.parametrize(
    ("scheme", "keys", "values"),
    [("W4A32", "float32", "float32"), ("W4A16", "float16", "float16"), ("W4A16K8V3", "uint8", "uint4")],
)
def test_the_cache_is_as_small_as_the_scheme_says(scheme, keys, values):
    facts = Engine(RandomModel(SPEC, scheme)).decoder(100).facts()
    assert (facts["keys"], facts["values"], facts["capacity"]) == (keys, values, 100)


def test_halves_hold_what_halves_can(monkeypatch):
    """Keys beyond the range of halves stay finite, small ones keep their subnormal bits."""
    model = RandomModel(SPEC, "W16A16", layers=1)
    for scale in (1e6, 1e-6):
        model.blocks[0]["k.weight"] = model.blocks[0]["k.weight"] * np.float32(scale)
        found = Engine(model).decoder(75).logits(TOKENS)
        assert np.isfinite(found).all()
    np.testing.assert_allclose(found, model.expected_logits(TOKENS), atol=2e-2)


def test_what_cannot_be_read_is_refused():
    engine = Engine(RandomModel(SPEC, "W4A8"))
    decoder = engine.decoder(8)
    for tokens, message in [
        ([37], "token 37 at position 0 is outside the vocabulary of 37"),
        ([0, -1], "token -1 at position 1"),
        (np.zeros(0, int), "0 tokens do not fit"),
        (np.zeros(9, int), "9 tokens do not fit: the decoder holds 0 of 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            decoder.next_logits(tokens)
    decoder.fill(np.zeros(8, int))
    with pytest.raises(ValueError, match="1 tokens do not fit: the decoder holds 8 of 8"):
        decoder.fill([0])
    with pytest.raises(ValueError, match="holds 8 tokens, not 9"):
        decoder.rewind(9)
    assert decoder.length == 8
    with pytest.raises(DataError, match="takes 1 to 512"):
        engine.decoder(513)
    with pytest.raises(DataError, match="0 tokens"):
        engine.decoder(0)


def test_a_model_that_is_not_whole_does_not_run():
    model = RandomModel(SPEC, "W4A8")
    embedding, head = (matrix.to_core() for matrix in model.matrices())
    activation, norm = model.scheme.activation(), model.norm["weight"]
    arguments = [SPEC.to_core(), activation, embedding, head, norm, None, 2, None]
    core = _core.model_create(*arguments)
    linears = {name: linear.to_core() for name, linear in model.scheme.block(0).items()}
    block = model.spec.to_core(), 0, model.tensors(0), linears, model.scheme.activation()
    _core.model_set_block(core, 0, *block)
    decoder = _core.decoder_create(core, 8, *(table[None] for table in model.rope_tables(8)))
    with pytest.raises(ValueError, match="block 1 is not set"):
        _core.decoder_feed(decoder, [1], "last")
    for index in (0, 2, -1):
        with pytest.raises(ValueError, match=f"block {index} of 2 cannot be set"):
            _core.model_set_block(core, index, *block)
    del linears["up"]
    with pytest.raises(ValueError, match='linears lack "up"'):
        _core.model_set_block(core, 1, *block)
    linears["up"] = linears["gate"]
    with pytest.raises(ValueError, match="kernel 'abacus' cannot run here"):
        _core.model_create(*arguments[:-1], "abacus")
    with pytest.raises(ValueError, match="cos"):
        _core.decoder_create(core, 8, *(table[None] for table in model.rope_tables(7)))
    other = replace(SPEC, residual="parallel").to_core()
    with pytest.raises(ValueError, match="another shape than the model's"):
        _core.model_set_block(core, 1, other, *block[1:])
    _core.model_set_block(core, 1, model.spec.to_core(), 1, model.tensors(1), *block[3:])
    with pytest.raises(ValueError, match="block 1 takes rotary table 1 of 1"):
        _core.decoder_feed(decoder, [1], "last")
    with pytest.raises(ValueError, match=r"PyCapsule"):
        _core.decoder_feed(core, [1], "last")


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("q.scale", lambda a: np.full_like(a, np.nan)),
        ("q.codes", lambda a: a[:, :-1]),
        ("down.zero_point", lambda a: a + 16),
        ("up.scale", lambda a: a[:-1]),
        ("norm1.weight", lambda a: a[:-1]),
    ],
)
def test_a_block_that_cannot_be_is_an_error_naming_it(tensor, change, monkeypatch):
    model = RandomModel(SPEC, "W4A8")
    bad = model.tensors(1)
    bad[tensor] = change(bad[tensor])
    blocks = [model.tensors(0), bad]
    monkeypatch.setattr(model, "tensors", lambda index: blocks[index])
    with pytest.raises(CheckpointError, match="random: block 1: "):
        Engine(model)


def test_threads_of_one_process_share_a_model():
    engine = Engine(RandomModel(SPEC, "W4A4"), threads=1)
    expected = engine.decoder(75).logits(TOKENS)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(1000 // 8):
            try:
                found = engine.decoder(75).logits(TOKENS)
                if not np.array_equal(found, expected):
                    wrong.append("other bits")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_decoder_is_used_by_one_thread_at_a_time():
    engine = Engine(RandomModel(replace(SPEC, hidden_size=128, ffn_size=512), "W4A16", layers=8), threads=1)
    decoder = engine.decoder(512)
    tokens = np.zeros(512, int)
    started = threading.Event()
    refused: list[str] = []

    def read() -> None:
        started.set()
        decoder.fill(tokens)

    thread = threading.Thread(target=read)
    thread.start()
    started.wait()
    while thread.is_alive() and not refused:
        try:
            decoder.rewind(0)
        except ValueError as error:
            refused.append(str(error))
    thread.join()
    assert refused == ["the decoder is in use by another thread"]
    assert decoder.length in (0, 512)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")
def test_a_cache_takes_memory_as_the_text_grows():
    model = RandomModel(replace(SPEC, rope=False), "W4A8", layers=1)  # tables of positions are whole at once
    model.max_positions = 40_000
    engine = Engine(model)
    first = engine.decoder(40_000)
    first.fill(TOKENS)
    size = first.facts()["bytes"]
    assert 2 << 20 < size < 4 << 20  # larger ones ask for large pages
    before, more = resident(), [engine.decoder(40_000) for _ in range(10)]
    for decoder in more:
        decoder.fill(TOKENS)
    assert resident() - before < len(more) * size / 2


@pytest.mark.parametrize("length", [75, 5000])
def test_memory_that_was_used_before_is_as_good_as_new(length):
    model = RandomModel(SPEC, "W4A32", layers=1)
    model.max_positions = length
    engine = Engine(model)
    expected = engine.decoder(length).logits(TOKENS)
    for _ in range(5):
        rubbish = np.full(engine.decoder(length).facts()["bytes"], 255, np.uint8)  # NaN as floats
        del rubbish
        np.testing.assert_array_equal(engine.decoder(length).logits(TOKENS), expected)


@pytest.mark.parametrize(("kind", "width"), [(9, 32), (-1, 32), (NIBBLES, 40)])
def test_unknown_kinds_of_heads_and_broken_groups_are_refused(kind, width, monkeypatch):
    model = RandomModel(replace(SPEC, hidden_size=width), "W4A16", layers=1)
    embedding, head = model.matrices()
    monkeypatch.setattr(model, "matrices", lambda: (embedding, Matrix(kind, head.values)))
    with pytest.raises(ValueError, match=rf"lm_head: no kind {kind} of matrix with {width} columns"):
        Engine(model)

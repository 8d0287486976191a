"""GGUF: what is written reads back to the bit, and llama.cpp computes with it what we compute."""

from __future__ import annotations

import numpy as np
import pytest
from exports import embedded_result, greedy_ties, model_named, nll, our_logits, tokens_of
from synthetic import byte_level_tokenizer, write_llama_gguf
from third_party import LlamaCpp
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

import omniquant
from omniquant.checkpoint.gguf_tokenizer import PRE_TOKENIZERS, pre_tokenizer_named
from omniquant.errors import UnsupportedError
from omniquant.export.gguf_tokenizer import pre_tokenizer_of
from omniquant.models.load import load_model

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("W4A16g32", "Q4_1"),
        ("W4A16g128", "Q4_1"),
        ("W4A16", "Q4_1"),
        ("W4sA16g64", "Q4_0"),
        ("W8sA16", "Q8_0"),
    ],
)
@pytest.mark.parametrize("method", ["rtn", "omniquant"])
def test_calibrated_for_it_nothing_is_lost(scheme, kind, method, tmp_path):
    result = embedded_result(scheme, method, target="gguf")
    path = result.export(tmp_path / "out", "gguf") / "model.gguf"
    again, folded = load_model(path), result.fold()
    assert f"linears {kind}" in again.source
    assert load_model(tmp_path / "out").source == again.source  # the folder serves as well
    for index in range(folded.num_layers):
        for name, values in folded.block(index).items():
            np.testing.assert_array_equal(again.block(index)[name], values, err_msg=name)
    np.testing.assert_array_equal(again.lm_head(), folded.lm_head())
    assert again.tokenizer.encode("def f(x): 12345").ids == folded.tokenizer.encode("def f(x): 12345").ids


@pytest.mark.parametrize(("bits", "kind"), [(8, "Q8_0"), (4, "Q4_0")])
def test_embedding_and_head_keep_their_bits(bits, kind, tmp_path):
    result = embedded_result("W4A16g32", target="gguf", embedding_bits=bits, head_bits=bits)
    path = result.export(tmp_path / "out", "gguf") / "model.gguf"
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert types["token_embd.weight"] == kind
    again = load_model(path)
    np.testing.assert_array_equal(again.lm_head(), result.fold().lm_head())
    assert np.abs(again.lm_head() - omniquant.load_model("omniquant-tiny").lm_head()).max() > 0


def test_calibrated_for_nothing_scales_are_rounded_to_float16(tmp_path):
    result = embedded_result("W4A16g32")
    path = result.export(tmp_path / "out", "gguf")
    again, folded = load_model(path / "model.gguf"), result.fold()
    ours, theirs = folded.block(0)["q.weight"], again.block(0)["q.weight"]
    assert 0 < np.abs(ours - theirs).max() < 2e-3 * np.abs(ours).max()
    assert "calibrate with --target gguf" in (path / "README.md").read_text()


def test_every_field_llama_cpp_needs(tmp_path):
    result = embedded_result("W4A16g32")
    reader = gguf.GGUFReader(result.export(tmp_path / "out", "gguf") / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "llama.block_count": 5,
        "llama.context_length": 256,
        "llama.embedding_length": 128,
        "llama.feed_forward_length": 384,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 2048,
        "general.quantization_version": 2,
        "general.file_type": 3,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert {name: fields[name] for name in expected} == expected
    assert len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"]) == 2048
    assert fields["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    assert len(fields["tokenizer.ggml.merges"]) == 1790
    names = {tensor.name for tensor in reader.tensors}
    assert "output.weight" not in names  # the head is the embedding
    assert len(names) == 2 + 5 * 9


def test_linear_and_llama3_scaling_of_positions(tmp_path):
    from small_run import small_model, small_tokens

    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    for name, scaling in (("linear", {"rope_type": "linear", "factor": 2.0}), ("llama3", llama3)):
        model = small_model(tmp_path / name, rope_scaling=scaling, tokenizer=False)
        result = omniquant.calibrate(model, small_tokens(), "W16A16", method="rtn", progress=False)
        reader = gguf.GGUFReader(result.export(tmp_path / f"{name}-out", "gguf") / "model.gguf")
        if name == "linear":
            assert reader.fields["llama.rope.scaling.type"].contents() == "linear"
            assert reader.fields["llama.rope.scaling.factor"].contents() == 2.0
            continue
        factors = next(t.data for t in reader.tensors if t.name == "rope_freqs.weight")
        plain = 10000.0 ** (-np.arange(0, 4, 2) / 4)
        np.testing.assert_allclose(plain / factors, model.architecture.rope.inverse_frequencies(4), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_pre_tokenizers_are_recognized(name):
    tokenizer = byte_level_tokenizer([])
    tokenizer.pre_tokenizer = pre_tokenizer_named(name)
    assert pre_tokenizer_of(tokenizer) == name


def test_blooms_own_tokenizer_is_recognized():
    tokenizer = byte_level_tokenizer([])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    marks = Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+")  # noqa: RUF001 - the marks are meant
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(marks, "isolated"), byte_level])
    assert pre_tokenizer_of(tokenizer) == "bloom"


@pytest.mark.parametrize("pre", ["falcon", "bloom", "phi-2", "olmo"])
def test_llama_cpp_cuts_alike(pre, tmp_path):
    texts = ["Hello world's 12345 7 don't\n\n  x = a_b[10]; 漢字!!", "  (a), b... \t 100,000? |x| `y`"]
    merges = [("l", "l"), ("o", "r"), ("1", "2"), ("12", "3"), ("\u0120", "a"), (",", "\u0120"), (".", ".")]
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "vocab_size": 263}
    path = write_llama_gguf(tmp_path / "m.gguf", tokenizer=byte_level_tokenizer(merges), pre=pre, **sizes)
    server, tokenizer = LlamaCpp(path), load_model(path).tokenizer
    for text in texts:
        assert server.complete(text)["usage"]["prompt_tokens"] == len(tokenizer.encode(text).ids)


@pytest.mark.parametrize("prepends", [True, False])
def test_whether_a_text_begins_with_a_space_is_kept(prepends, tmp_path):
    from families.oracle import SIZES, random_model, transformers

    random_model(transformers.LlamaConfig(**SIZES | {"vocab_size": 300})).save_pretrained(tmp_path / "m")
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a", "b"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[("\u2581", "a")], unk_token="<unk>", byte_fallback=True,
        )
    )  # fmt: skip
    first = [normalizers.Prepend("\u2581")] if prepends else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "\u2581")])
    tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    model = load_model(tmp_path / "m")
    windows = np.arange(16).reshape(1, 16)
    result = omniquant.calibrate(model, windows, "W16A16", method="rtn", progress=False)
    again = load_model(result.export(tmp_path / "out", "gguf") / "model.gguf")
    for text in ("a b", "ab"):
        assert again.tokenizer.encode(text).ids == model.tokenizer.encode(text).ids


def test_an_unknown_way_to_cut_words_is_refused():
    tokenizer = byte_level_tokenizer([])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[aeiou]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(UnsupportedError, match=r"gguf cannot hold this tokenizer: it cuts text unlike"):
        pre_tokenizer_of(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W4A16g32", "W4sA16g32", "W8sA16"])
def test_llama_cpp_agrees(scheme, tmp_path):
    result = embedded_result(scheme, "omniquant", target="gguf")
    server = LlamaCpp(result.export(tmp_path / "out", "gguf") / "model.gguf")
    windows = omniquant.evaluation_windows(None, result.fold(), 64, 128)
    theirs = np.mean([server.nats(window) for window in windows])
    assert abs(np.expm1(theirs - nll(our_logits(result, windows), windows))) < 5e-3
    # llama.cpp rounds activations to 8 bits, so a near tie of ours may fall the other way.
    ties = greedy_ties(result, windows[0][:16], server.greedy(windows[0][:16], 64))
    assert len(ties) <= (1 if scheme == "W4sA16g32" else 0), ties
    assert max(ties, default=0.0) < 0.2, ties


@pytest.mark.slow
def test_llama_cpp_runs_stories_in_float_and_tokenizes_alike(shared, tmp_path):
    model = model_named("stories260K", shared)
    result = omniquant.calibrate(model, tokens_of(model), "W16A16", method="rtn", progress=False)
    server = LlamaCpp(result.export(tmp_path / "out", "gguf") / "model.gguf")
    text = "Once upon a time, there was a girl named Lily."
    ids = np.array([model.tokenizer.encode(text).ids], np.int32)
    expected = our_logits(result, ids)[0, -1]
    expected -= expected.max() + np.log(np.exp(expected - expected.max()).sum())
    found = server.logp(ids[0], model.vocab_size)
    assert np.abs(found - expected).max() < 0.02
    assert server.complete(text)["usage"]["prompt_tokens"] == ids.size

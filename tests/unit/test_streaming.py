"""Text piece by piece: the pieces are the whole text, no half characters, nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers

from omniquant.runtime.streaming import StopStrings, TextStream

BYTES = byte_level_tokenizer([("a", "b"), ("Ġ", "a")], special=("<end>",))


def sentence_pieces():
    """Return a tokenizer of the SentencePiece kind: spaces as a letter, bytes as a fallback."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcd", "▁a", "bc"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a"), ("b", "c")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


PIECES = sentence_pieces()
TEXTS = st.text(alphabet="ab c dé漢🙂\n", max_size=40)


def pieces_of(tokenizer, ids, before=()):
    stream = TextStream(tokenizer, before)
    return [stream.push(token) for token in ids] + [stream.finish()]


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@given(text=TEXTS)
def test_all_pieces_together_are_the_text(tokenizer, text):
    ids = tokenizer.encode(text).ids
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@given(before=TEXTS.filter(bool), text=TEXTS)
def test_a_text_goes_on_where_the_prompt_ends(tokenizer, before, text):
    """The space before the first word is written, though a decoder would strip it at a beginning."""
    ids = tokenizer.encode(before + text).ids
    whole = tokenizer.decode(ids)
    for cut in range(len(ids)):
        start = tokenizer.decode(ids[:cut])
        if not start.endswith("\ufffd"):
            assert start + "".join(pieces_of(tokenizer, ids[cut:], ids[:cut])) == whole


def test_a_character_comes_when_it_is_whole():
    ids = BYTES.encode("é🙂").ids
    assert len(ids) == 6
    assert pieces_of(BYTES, ids) == ["", "é", "", "", "", "🙂", ""]


def test_bytes_that_are_no_text_come_out_at_last():
    ids = BYTES.encode("🙂").ids[:2] + BYTES.encode("a").ids
    assert "".join(pieces_of(BYTES, ids)) == BYTES.decode(ids)
    assert "".join(pieces_of(BYTES, ids[:2])) == "\ufffd"


def test_special_tokens_are_not_shown():
    ids = [*BYTES.encode("a").ids, BYTES.token_to_id("<end>"), *BYTES.encode("b").ids]
    assert pieces_of(BYTES, ids) == ["a", "", "b", ""]


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_a_text_ends_before_the_first_stop_string(text, stops, cuts):
    found = [at for at in map(text.find, stops) if at >= 0]
    finder, at, shown = StopStrings(stops), 0, ""
    for cut in [*sorted(cuts), len(text)]:
        shown += finder.push(text[at : max(at, cut)])
        at = max(at, cut)
    assert finder.stopped == bool(found)
    shown += finder.finish()
    if not found:
        assert shown == text
    else:
        # Piece by piece the earliest to be complete wins; it begins no later than any other ends.
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text.startswith(stop, len(shown)) for stop in stops)

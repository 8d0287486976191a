"""Training of the embedded model's tokenizer (development only: needs the ``tokenizers`` library)."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS_TOKEN = "<s>"
EOS_TOKEN = "</s>"


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Train a byte-level byte-pair encoding.

    Parameters
    ----------
    text
        Training text.
    vocab_size
        Size of the vocabulary, the two special tokens (ids 0 and 1) and the 256 bytes included.

    Returns
    -------
    Tokenizer
        A tokenizer that adds no special tokens by itself and decodes to exactly the encoded text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # By line: the pre-tokenizer never joins a newline with the text that follows it.
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer

"""Writing of the trained model as a Hugging Face LLaMA folder (development only)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save
from tokenizers import Tokenizer

from omniquant.embedded.architecture import Architecture
from omniquant.embedded.outliers import OutlierPlan, Weights
from omniquant.embedded.tokenizer_training import BOS_TOKEN, EOS_TOKEN

_MODEL_CARD = """\
# omniquant-tiny

The embedded default model of omniquant: a LLaMA-architecture language model of {parameters:,} parameters
({layers} layers, width {hidden}, {heads} query and {kv_heads} key/value heads of {head_dim}, SwiGLU of {ffn},
tied embeddings, byte-level BPE vocabulary of {vocab}), stored in float32. It exists so that quantization
can be shown and tested without a download; it is of no use for anything else.

## Training

From random weights by `python -m omniquant.embedded.train`: {tokens_seen:,} tokens ({epochs:.1f} epochs) in
windows of {window}, AdamW, {minutes:.0f} minutes on one CPU thread. The text is the language reference
(`pydoc_data.topics`) and the docstrings of the standard library of Python {python}, built at run time by
`omniquant.embedded.corpus`. A tenth of the documents is held out for evaluation.

## Outlier channels

After training, channels were rescaled without changing the function of the model
(`omniquant.embedded.outliers`), so that it has the outliers that make large models hard to quantize:
norm gains times {norm_factors}, value channels times {value_factors}, the weights behind them divided by
the same powers of two.

The plan was chosen on the evaluation text below, by what it does to round-to-nearest W4A4: the script tries
the plans of its list in their order and keeps the first whose perplexity is at least {target:g} times that of
float32. How badly rounding fares on this model is thus set by design and no evidence about models in
general; nor is its evaluation text one that no choice has seen. The trials:

| norm gains times | value channels times | round-to-nearest W4A4 | ratio to float32 |
|---|---|---|---|
{trials}

The list of plans and the ratio were written by hand; what trials led to them was not recorded.

## Perplexity

On the evaluation text of Python {python}, non-overlapping windows of {window} tokens:

| Model | Perplexity |
|---|---|
| float32 | {full:.3f} |
| round-to-nearest W4A4 | {quantized:.3f} |

W4A4: weights asymmetric per output channel, activations asymmetric per token (query, key and value per
token and head), 4 bits each, min-max ranges. Other Python versions have other texts, hence other figures.
"""


@dataclass(frozen=True)
class Figures:
    """What the model card reports about a training run; `trials` are all plans tried, the last was taken."""

    parameters: int
    tokens_seen: int
    epochs: float
    minutes: float
    python: str
    full: float
    trials: tuple[tuple[OutlierPlan, float], ...]
    target: float


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _tokenizer_config(arch: Architecture) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": arch.max_position_embeddings,
    }


def _factors(factors: tuple[int, ...]) -> str:
    return ", ".join(map(str, factors)) or "1"


def _row(plan: OutlierPlan, quantized: float, full: float) -> str:
    factors = f"| {_factors(plan.norm_factors)} | {_factors(plan.value_factors)} "
    return f"{factors}| {quantized:.3f} | {quantized / full:.2f} |"


def model_card(arch: Architecture, figures: Figures) -> str:
    """Return the text of the model's ``README.md``."""
    plan, quantized = figures.trials[-1]
    known = vars(figures) | {"trials": "\n".join(_row(*trial, figures.full) for trial in figures.trials)}
    return _MODEL_CARD.format(
        layers=arch.num_hidden_layers,
        hidden=arch.hidden_size,
        heads=arch.num_attention_heads,
        kv_heads=arch.num_key_value_heads,
        head_dim=arch.head_dim,
        ffn=arch.intermediate_size,
        vocab=arch.vocab_size,
        window=arch.max_position_embeddings,
        norm_factors=_factors(plan.norm_factors),
        value_factors=_factors(plan.value_factors),
        quantized=quantized,
        **known,
    )


def write_model(
    folder: Path,
    arch: Architecture,
    weights: Weights,
    tokenizer: Tokenizer,
    card: str,
) -> None:
    """Write a model folder that Hugging Face libraries and omniquant read.

    Parameters
    ----------
    folder
        Target folder; created if missing, its files are overwritten.
    arch
        Shape of the model.
    weights
        Tensors by Hugging Face name.
    tokenizer
        Trained tokenizer.
    card
        Text of ``README.md``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Not save_file: it makes the file unreadable for other users, whatever the umask.
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _write_json(folder / "config.json", arch.to_config())
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(arch))
    special = {"bos_token_id": arch.bos_token_id, "eos_token_id": arch.eos_token_id}
    _write_json(folder / "generation_config.json", dict(special))
    (folder / "README.md").write_text(card, encoding="utf-8")

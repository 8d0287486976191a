"""From arrays in memory to a :class:`Model`, for those who bring no files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from omniquant.checkpoint.arrays import ArraySource
from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.text import one_line
from omniquant.checkpoint.text_settings import TextSettings
from omniquant.checkpoint.tokenizer_file import fitted, read_tokenizer
from omniquant.errors import ConfigError
from omniquant.models.model import Model
from omniquant.models.registry import adapter_for_model_type


def model_from_arrays(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    *,
    name: str = "arrays",
    text: TextSettings | None = None,
) -> Model:
    """Make a model of arrays; nothing is copied but what is not float32, a block at a time.

    Parameters
    ----------
    tensors : mapping of str to array
        By their Hugging Face names, such as "model.layers.0.self_attn.q_proj.weight": float32, float16 or
        bfloat16 (of ml_dtypes, or its bits as uint16), NumPy's or of any library that speaks DLPack. Names
        that are not needed are passed over.
    config : mapping
        What config.json says.
    tokenizer : Tokenizer or path to a tokenizer.json, optional
        Without one, calibrate and evaluate on token ids.
    name : str
        What the model is called.
    text : TextSettings, optional
        Special tokens and chat template; None: what `config` says.

    Returns
    -------
    Model
        A view: what is written into the arrays later, it sees.

    Raises
    ------
    CheckpointError
        If a tensor is missing, or of another shape than the configuration says.
    ConfigError
        If something is no array, or the configuration is not what JSON can hold.

    Examples
    --------
    >>> import json, omniquant, safetensors.numpy
    >>> from omniquant.embedded import embedded_model_path
    >>> folder = embedded_model_path()
    >>> tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    >>> omniquant.model_from_arrays(tensors, json.loads((folder / "config.json").read_text())).num_layers
    5
    """
    plain = Fields(_plain(config, name), f"{name}: config")
    adapter = adapter_for_model_type(plain.text("model_type"), plain.where)
    architecture = adapter.architecture(plain)
    return Model(
        name=name,
        adapter=adapter,
        architecture=architecture,
        config=plain.values,
        source=ArraySource(tensors, name),
        read_tokenizer=_tokenizer_reader(tokenizer, architecture.vocab_size, name),
        read_text=None if text is None else lambda _: text,
    )


def _plain(config: Mapping[str, Any], name: str) -> dict[str, object]:
    # Through JSON, which is what the result directory and the fingerprint make of it.
    try:
        values: dict[str, object] = json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: config: not what config.json can hold: {one_line(error)}") from error
    return values


def _tokenizer_reader(
    tokenizer: Tokenizer | str | os.PathLike[str] | None, vocab_size: int, name: str
) -> Callable[[], Tokenizer]:
    def read() -> Tokenizer:
        if tokenizer is None:
            raise UnsupportedCheckpointError(f"{name}: came without a tokenizer, so text cannot be tokenized")
        if isinstance(tokenizer, str | os.PathLike):
            return fitted(read_tokenizer(Path(tokenizer)), vocab_size, str(tokenizer))
        # A copy: the caller's may be set to cut or pad texts.
        return fitted(Tokenizer.from_str(tokenizer.to_str()), vocab_size, name)

    return read

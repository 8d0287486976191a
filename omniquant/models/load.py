"""From a path or name to a :class:`Model`."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.gguf_reader import GgufFile
from omniquant.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from omniquant.checkpoint.graphs import refuse_graph
from omniquant.checkpoint.json_file import read_json_object
from omniquant.checkpoint.safetensors_reader import SafetensorsFolder
from omniquant.checkpoint.text_settings import settings_from_folder, settings_from_gguf
from omniquant.checkpoint.tokenizer_file import fitted, read_tokenizer
from omniquant.errors import CheckpointError
from omniquant.models.model import Model
from omniquant.models.registry import adapter_for_gguf, adapter_for_model_type

EMBEDDED_NAME = "omniquant-tiny"

_MAX_CONFIG_BYTES = 1 << 20


def load_model(source: str | os.PathLike[str]) -> Model:
    """Open a model; only what is asked for later is read.

    Parameters
    ----------
    source
        A Hugging Face folder (config.json, safetensors, tokenizer.json), a ``.gguf`` file or a folder with
        one and no safetensors, or "omniquant-tiny", the model inside this package.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, lies about its sizes or is not supported; one line that names the file.
    """
    if str(source) == EMBEDDED_NAME:
        return _load_folder(_embedded_folder(), EMBEDDED_NAME)
    check_there(source)
    path = Path(source)
    if path.is_dir():
        return _load_folder(path, path.resolve().name)
    if path.suffix == ".gguf":
        return _load_gguf(path)
    raise CheckpointError(f"{path}: expected a .gguf file or a folder with config.json")


def check_there(source: str | os.PathLike[str]) -> None:
    """Raise CheckpointError where a model's path leads to no folder or file; nothing is read."""
    path = Path(source)
    # An unusable path (a NUL inside, a name too long) is simply not there.
    with suppress(OSError, ValueError):
        if str(source) == EMBEDDED_NAME or path.is_dir() or path.is_file():
            return
    raise CheckpointError(f"{str(path)!r}: no such folder or file, and not {EMBEDDED_NAME}")


def _embedded_folder() -> Path:
    # Imported late: most users bring their own model.
    from omniquant.embedded import embedded_model_path

    try:
        return embedded_model_path()
    except OSError as error:
        raise CheckpointError(f"{EMBEDDED_NAME}: {error}") from error


def _load_folder(folder: Path, name: str) -> Model:
    if (folder / "outer.safetensors").exists():
        raise CheckpointError(
            f"{folder}: looks like a result of omniquant quantize, but has no manifest.json"
        )
    if not any(folder.glob("*.safetensors*")):
        found = sorted(folder.glob("*.gguf"))
        if len(found) == 1:
            return _load_gguf(found[0])  # an export of ours
        refuse_graph(folder)
    config_path = folder / "config.json"
    config = Fields(read_json_object(config_path, _MAX_CONFIG_BYTES), str(config_path))
    adapter = adapter_for_model_type(config.text("model_type"), config.where)
    architecture = adapter.architecture(config)
    return Model(
        name=name,
        adapter=adapter,
        architecture=architecture,
        config=config.values,
        source=SafetensorsFolder(folder),
        read_tokenizer=partial(_folder_tokenizer, folder / "tokenizer.json", architecture.vocab_size),
        read_text=partial(settings_from_folder, folder, config.values),
    )


def _load_gguf(path: Path) -> Model:
    source = GgufFile(path)
    adapter = adapter_for_gguf(source.fields.text("general.architecture"), source.fields.where)
    config = Fields(adapter.config_from_gguf(source.fields, source), source.fields.where)
    adapter = adapter_for_model_type(config.text("model_type"), config.where)  # Mixtral goes by llama's name
    architecture = adapter.architecture(config)
    return Model(
        name=source.name,
        adapter=adapter,
        architecture=architecture,
        config=config.values,
        source=source,
        read_tokenizer=partial(_gguf_tokenizer, source.fields, architecture.vocab_size),
        read_text=lambda tokenizer: settings_from_gguf(source.fields),
    )


def _folder_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    return fitted(read_tokenizer(path), vocab_size, str(path))


def _gguf_tokenizer(metadata: Fields, vocab_size: int) -> Tokenizer:
    return fitted(tokenizer_from_gguf(metadata), vocab_size, metadata.where)

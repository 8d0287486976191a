"""How a model begins and ends a text: its special tokens and its chat template.

Hugging Face folders spread this over tokenizer_config.json, generation_config.json, config.json and
chat_template.jinja; GGUF files have it in their metadata. A result directory keeps it in text.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.json_file import read_json_object
from omniquant.checkpoint.text import one_line
from omniquant.errors import CheckpointError

_MAX_TEMPLATE = 1 << 20


@dataclass(frozen=True)
class TextSettings:
    """Special tokens and chat template of a model.

    Parameters
    ----------
    bos, eos : int or None, tuple of int
        The token that begins a text, and those that end one.
    add_bos : bool
        Prompts begin with it.
    chat_template : str or None
        A jinja2 template of messages.
    """

    bos: int | None = None
    eos: tuple[int, ...] = ()
    add_bos: bool = False
    chat_template: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Fields) -> TextSettings:
        """Read what :meth:`to_dict` gave, which nobody vouches for; CheckpointError."""
        return cls(
            bos=_token(fields, "bos"),
            eos=_tokens(fields, "eos"),
            add_bos=fields.boolean("add_bos", False),
            chat_template=_template(fields, "chat_template"),
        )


def settings_from_config(config: Fields) -> TextSettings:
    """Return what config.json alone says."""
    return TextSettings(_token(config, "bos_token_id"), _tokens(config, "eos_token_id"))


def settings_from_folder(folder: Path, config: Mapping[str, object], tokenizer: Tokenizer) -> TextSettings:
    """Read the settings of a Hugging Face folder; what is not said anywhere stays empty.

    Raises
    ------
    CheckpointError
        If a file is damaged or a field is not what it has to be.
    """
    where = folder / "config.json"
    plain = settings_from_config(Fields(config, str(where)))
    generation = _read(folder / "generation_config.json")
    told = _read(folder / "tokenizer_config.json")
    bos = _by_content(told, "bos_token", tokenizer)
    eos = _by_content(told, "eos_token", tokenizer)
    ends = dict.fromkeys((*plain.eos, *_tokens(generation, "eos_token_id"), *(() if eos is None else (eos,))))
    return TextSettings(
        bos=plain.bos if bos is None else bos,
        eos=tuple(ends),
        add_bos=told.boolean("add_bos_token", False),
        chat_template=_folder_template(folder, told),
    )


def settings_from_gguf(metadata: Fields) -> TextSettings:
    """Read the settings of a GGUF file."""
    prefix = "tokenizer.ggml."
    eos = _token(metadata, prefix + "eos_token_id")
    return TextSettings(
        bos=_token(metadata, prefix + "bos_token_id"),
        eos=() if eos is None else (eos,),
        add_bos=metadata.boolean(prefix + "add_bos_token", False),
        chat_template=_template(metadata, "tokenizer.chat_template"),
    )


def _read(path: Path) -> Fields:
    return Fields(read_json_object(path) if path.is_file() else {}, str(path))


def _token(fields: Fields, field: str) -> int | None:
    return fields.integer(field, minimum=0) if fields.has(field) else None


def _tokens(fields: Fields, field: str) -> tuple[int, ...]:
    value = fields.values.get(field)
    if not isinstance(value, list | tuple):
        token = _token(fields, field)
        return () if token is None else (token,)
    return tuple(Fields({field: entry}, fields.where).integer(field, minimum=0) for entry in value)


def _template(fields: Fields, field: str) -> str | None:
    if not fields.has(field):
        return None
    text = fields.text(field)
    if len(text) > _MAX_TEMPLATE:
        raise CheckpointError(f"{fields.where}: {field} has {len(text)} characters, at most {_MAX_TEMPLATE}")
    return text


def _by_content(fields: Fields, field: str, tokenizer: Tokenizer) -> int | None:
    value = fields.values.get(field)
    if isinstance(value, dict):  # an AddedToken with its flags
        value = value.get("content")
    if not isinstance(value, str):
        return None
    token: int | None = tokenizer.token_to_id(value)
    return token


def _folder_template(folder: Path, told: Fields) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot read: {one_line(error)}") from error
        return _template(Fields({"template": text}, str(path)), "template")
    several = told.values.get("chat_template")
    if isinstance(several, list):  # named templates
        entries = [entry for entry in several if isinstance(entry, dict) and entry.get("name") == "default"]
        return _template(Fields(entries[0], told.where), "template") if entries else None
    return _template(told, "chat_template")

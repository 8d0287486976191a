"""Conversations as one prompt, by the model's own template (jinja2, sandboxed: it is foreign code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from omniquant.checkpoint.text import one_line
from omniquant.errors import ConfigError, DataError

Message = Mapping[str, str]


def render_chat(template: str, messages: Sequence[Message], bos_token: str = "", eos_token: str = "") -> str:
    """Return the prompt of a conversation, up to where the model's answer begins.

    Parameters
    ----------
    template : str
        Of the model; nobody vouches for it.
    messages : sequence of {"role": ..., "content": ...}
    bos_token, eos_token : str
        As templates use them.

    Raises
    ------
    ConfigError
        If jinja2 is not installed.
    DataError
        If the messages are none, or the template refuses them or is damaged.
    """
    checked = [_checked(message, index) for index, message in enumerate(messages)]
    if not checked:
        raise DataError("a conversation needs at least one message")
    try:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ConfigError("chat templates need jinja2: pip install 'omniquant-c[chat]'") from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = _refuse
    values: dict[str, Any] = {"messages": checked, "bos_token": bos_token, "eos_token": eos_token}
    try:
        return environment.from_string(template).render(**values, add_generation_prompt=True)
    except DataError:
        raise
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the chat template cannot be used: {one_line(error)}") from error


def _checked(message: object, index: int) -> dict[str, str]:
    if not isinstance(message, Mapping) or not all(
        isinstance(message.get(key), str) for key in ("role", "content")
    ):
        raise DataError(f"message {index} is no mapping with a role and a content, both text")
    return dict(message)


def _refuse(reason: object) -> NoReturn:
    raise DataError(f"the chat template refuses the messages: {one_line(ValueError(str(reason)))}")

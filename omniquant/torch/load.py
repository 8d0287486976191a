"""A transformers module's tensors as a model of ours, without copying them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from omniquant.checkpoint.text_settings import TextSettings
from omniquant.errors import ConfigError
from omniquant.models.arrays import model_from_arrays
from omniquant.models.model import Model


def load_model(
    module_or_state_dict: torch.nn.Module | Mapping[str, torch.Tensor],
    config: Any = None,
    tokenizer: Any = None,
    *,
    name: str | None = None,
) -> Model:
    """Make a model of a transformers module or of its state dict.

    Tensors on the CPU are looked at where they lie (bfloat16 by its bits), so the module's memory is all
    there is; those on another device are copied. The model sees what is written into the module later:
    calibrate before :func:`write_weights`, not after.

    Parameters
    ----------
    module_or_state_dict : torch.nn.Module or mapping of str to torch.Tensor
        Such as LlamaForCausalLM, or tensors by the names it gives them; float32, float16 or bfloat16.
    config : transformers configuration or mapping, optional
        What config.json says; None: the module's own.
    tokenizer : optional
        A fast tokenizer of transformers, one of tokenizers, or the path of a tokenizer.json. Without one,
        calibrate and evaluate on token ids.
    name : str, optional
        What the model is called; None: what the configuration says, or the module's class.

    Returns
    -------
    Model

    Raises
    ------
    ConfigError
        If there is no configuration, or a tensor has no values (the meta device).
    CheckpointError
        If a tensor is missing, or of another shape than the configuration says.

    Examples
    --------
    >>> from transformers import AutoModelForCausalLM  # doctest: +SKIP
    >>> model = load_model(AutoModelForCausalLM.from_pretrained("model"))  # doctest: +SKIP
    """
    tensors: Mapping[str, Any] = (
        module_or_state_dict.state_dict()
        if isinstance(module_or_state_dict, torch.nn.Module)
        else module_or_state_dict
    )
    if config is None:
        config = getattr(module_or_state_dict, "config", None)
    if config is None:
        raise ConfigError("a state dict says nothing of its model: give its configuration, config=...")
    values = _values(config)
    called = name or str(values.get("_name_or_path") or type(module_or_state_dict).__name__)
    arrays = {key: _array(key, value) for key, value in tensors.items()}
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    text = None if backend is tokenizer else _text(tokenizer, values)
    return model_from_arrays(arrays, values, backend, name=called, text=text)


def _values(config: Any) -> dict[str, Any]:
    """Return what config.json would hold."""
    if isinstance(config, Mapping):
        return dict(config)
    try:
        values = json.loads(config.to_json_string(use_diff=False))
    except AttributeError:
        raise ConfigError(f"config is a {type(config).__name__}, no configuration of transformers") from None
    # null is what transformers calls no quantization; ours is asked whether the field is there.
    return {key: value for key, value in values.items() if value is not None}


def _array(name: str, tensor: Any) -> npt.NDArray[Any]:
    if not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"{name} is a {type(tensor).__name__}, no tensor")
    if tensor.is_meta:
        raise ConfigError(f"{name} lies on the meta device: it has no values")
    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        # NumPy has no bfloat16: its bits, through a type both libraries have.
        bits: npt.NDArray[np.int16] = plain.view(torch.int16).numpy()
        return bits.view(np.uint16)
    array: npt.NDArray[Any] = plain.numpy()
    return array


def _text(tokenizer: Any, config: Mapping[str, Any]) -> TextSettings:
    """Return special tokens and chat template as a tokenizer of transformers knows them."""
    listed = config.get("eos_token_id")
    ends = [*listed] if isinstance(listed, list) else [listed]
    known = dict.fromkeys(token for token in (*ends, tokenizer.eos_token_id) if token is not None)
    template = getattr(tokenizer, "chat_template", None)
    return TextSettings(
        bos=config.get("bos_token_id") if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        eos=tuple(known),
        add_bos=bool(getattr(tokenizer, "add_bos_token", False)),
        chat_template=template if isinstance(template, str) else None,
    )

"""The embedded default model: text and weights that need neither network nor files of the user.

The folder ``model/`` beside this file is a small LLaMA-architecture language model in the Hugging Face
layout, trained by ``python -m omniquant.embedded.train``. Its calibration and evaluation texts are not
stored: :mod:`omniquant.embedded.corpus` builds them from the documentation inside the running Python.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from omniquant.embedded.corpus import calibration_text, evaluation_text, training_text

EMBEDDED_NAME = "omniquant-tiny"

__all__ = ["EMBEDDED_NAME", "calibration_text", "embedded_model_path", "evaluation_text", "training_text"]


def embedded_model_path() -> Path:
    """Return the folder of the embedded model (Hugging Face LLaMA layout).

    Returns
    -------
    Path
        The folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``.

    Raises
    ------
    FileNotFoundError
        If the package was installed without the weights.
    """
    folder = Path(str(files("omniquant.embedded").joinpath("model")))
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"the weights of {EMBEDDED_NAME} are missing from {folder}")
    return folder

"""Exports that other engines load: a finished result in, a complete model folder of a format out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from omniquant.export.content import Content
from omniquant.export.folder import new_folder
from omniquant.export.huggingface import folded_tensors
from omniquant.export.refusals import Wish
from omniquant.export.table import FORMATS, format_of, refuse
from omniquant.forward import Weights
from omniquant.quantized import CalibrationResult

__all__ = ["FORMATS", "export_result", "result_arrays"]


def export_result(
    result: CalibrationResult,
    path: str | os.PathLike[str],
    format: str,
    *,
    variant: str | None = None,
    weights_only: bool = False,
    perplexity: Mapping[str, float] | None = None,
) -> Path:
    """Write a model folder; see :meth:`omniquant.CalibrationResult.export`."""
    found, chosen = format_of(format, variant)
    content = Content(result, weights_only, chosen, perplexity or {})
    refuse(Wish.of(result.fold(), format, chosen, result.scheme, result.options, weights_only))
    write = found.writer(format)
    target = Path(path)
    with new_folder(target) as folder:
        write(content, folder)
    return target


def result_arrays(result: CalibrationResult, weights_only: bool = False) -> Weights:
    """Return a result as arrays; see :meth:`omniquant.CalibrationResult.arrays`."""
    content = Content(result, weights_only)
    refuse(Wish.of(result.fold(), "huggingface", "", result.scheme, result.options, weights_only))
    arrays = content.outer_tensors()
    for index in range(result.header.num_layers):
        for name, values in folded_tensors(content, index).items():
            arrays[name] = values.astype(np.float32, copy=False)
    return arrays

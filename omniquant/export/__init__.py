"""Exports that other engines load: a finished result in, a complete model folder of a format out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from omniquant.export.content import Content
from omniquant.export.folder import new_folder
from omniquant.export.refusals import Wish
from omniquant.export.table import FORMATS, format_of, refuse
from omniquant.quantized import CalibrationResult

__all__ = ["FORMATS", "export_result"]


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
    refuse(Wish(format, chosen, result.scheme, result.options, result.architecture.spec, weights_only))
    write = found.writer(format)
    target = Path(path)
    with new_folder(target) as folder:
        write(content, folder)
    return target

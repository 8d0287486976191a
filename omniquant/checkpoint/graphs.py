"""Graphs of other engines: what two of our exports write beside config.json, and what nothing here reads."""

from __future__ import annotations

from pathlib import Path

from omniquant.errors import CheckpointError

ONNX_NAME = "model.onnx"
OPENVINO_NAME = "openvino_model.xml"  # as Hugging Face's readers look for it

_ENGINES = {ONNX_NAME: "ONNX Runtime", OPENVINO_NAME: "OpenVINO"}


def refuse_graph(folder: Path) -> None:
    """Raise CheckpointError where a folder holds such a graph, saying who runs it."""
    for name, engine in _ENGINES.items():
        if (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: holds an exported {name}, which {engine} runs; "
                "omniquant reads models and results of omniquant quantize, as the one it was exported from"
            )

"""Every notebook runs from top to bottom, with less of everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a notebook shows beside this package.
NEEDS = {
    "03_from_pytorch_to_pytorch": ("torch", "transformers"),
    "04_export_and_load": (
        *("gguf", "onnx", "onnxruntime", "xllamacpp"),
        *("torch", "transformers", "compressed_tensors"),
    ),
}
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    for name in ("nbmake", "ipykernel", "matplotlib", *NEEDS.get(path.stem, ())):
        pytest.importorskip(name)
    environment = os.environ | {
        "OMNIQUANT_FAST": "1",
        "MPLCONFIGDIR": str(tmp_path),
        "IPYTHONDIR": str(tmp_path),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbmake",
            "--nbmake-timeout=240",
            "-p",
            "no:cacheprovider",
            "-q",
            path,
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4
    assert set(NEEDS) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)

"""Every notebook runs from top to bottom, with less of everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    for name in ("nbmake", "ipykernel", "matplotlib"):
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
    assert NOTEBOOKS

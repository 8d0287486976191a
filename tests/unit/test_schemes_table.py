"""The table of what methods come to at some schemes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_run import small_folder, small_tokens

import omniquant
from benchmarks import schemes
from benchmarks.schemes import Setting, table


def test_rows_are_calibrated_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "windows.npy", small_tokens(6, 16))
    model = small_folder(tmp_path / "tiny")
    setting = Setting(str(model), tmp_path, str(tmp_path / "windows.npy"), seqlen=16, more=["--epochs", "1"])
    lines = list(table(setting, ["W3A16g8"], ["rtn", "auto"], [0, 1]))
    assert {line.count("|") for line in lines} == {9}
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[:2] for row in cells] == [["W3A16g8", "rtn"], ["W3A16g8", "auto"]]
    names = {path.name for path in tmp_path.iterdir() if path.name.startswith("W3A16g8") and path.is_dir()}
    assert names == {"W3A16g8_rtn_0", "W3A16g8_auto_0", "W3A16g8_auto_1"}
    assert ["(" in row[2] for row in cells] == [False, True]  # the range over seeds
    result = omniquant.CalibrationResult.load(tmp_path / "W3A16g8_rtn_0")
    known = omniquant.perplexity(result, small_tokens(6, 16), threads=1)
    assert cells[0][2] == f"{known:.4g}"
    assert [row[5] for row in cells] == ["nothing"] * 2
    assert all(8 <= float(row[4]) < 8.5 for row in cells)  # 3, and 40 for every eight weights
    assert json.loads((tmp_path / "W3A16g8_rtn_0.json").read_text())["seconds"] > 0
    monkeypatch.setattr(schemes, "command", None)  # nothing is left to run
    assert list(table(setting, ["W3A16g8"], ["rtn", "auto"], [0, 1])) == lines


def test_a_command_that_fails_ends_the_table(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"omniquant quantize nowhere .* ended with 2"):
        list(table(Setting("nowhere", tmp_path), ["W4A16"], ["rtn"], [0]))

"""The table of benchmarks.zero_shot: rows, pairing, answers that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import omniquant
from benchmarks.zero_shot import Setting, named, table
from omniquant.cli import main

ROW = {"query": "Question: What is warm?\n", "choices": ["the sun", "ice"]}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("zero") / "rough"
    argv = ["quantize", "omniquant-tiny", "--scheme", "W2A16", "--method", "rtn", "--output", str(place)]
    assert main([*argv, "--samples", "2", "--seqlen", "16", "--quiet"]) == 0
    return str(place)


def test_a_row_a_model_against_the_first_and_answers_kept(tmp_path: Path, result: str) -> None:
    rows = [json.dumps(ROW | {"gold": number % 2}) for number in range(6)]
    (tmp_path / "piqa.jsonl").write_text("\n".join(rows))
    setting = Setting(("piqa",), str(tmp_path), limit=4, answers=tmp_path / "answers")
    models = ["omniquant-tiny", f"two bits={result}"]
    lines = list(table(setting, models))
    assert lines[0] == "| acc | piqa (4) | mean | difference, 95 % | flips |"
    assert lines[1].count("---") == 5
    # The question is one, its right answer by turns: whatever a model says is right half the time.
    assert lines[2] == "| omniquant-tiny | 50.0 | 50.0 ± 28.9 | | |"
    assert lines[3].startswith("| two bits | 50.0 | 50.0 ± 28.9 | +0.0 (")
    with np.load(tmp_path / "answers" / "two bits.npz") as kept:
        expected = omniquant.zero_shot(
            omniquant.QuantizedModel.load(result), "piqa", tmp_path, limit=4, threads=1
        )
        np.testing.assert_array_equal(kept["piqa"], expected["piqa"].right)
    (tmp_path / "answers" / "two bits.npz").unlink()
    assert list(table(setting, models)) == lines  # some kept, some asked for
    np.savez(tmp_path / "answers" / "two bits.npz", piqa=np.array([True] * 4))
    last = list(table(setting, models))[3]
    assert "| two bits | 100.0 | 100.0 ± 0.0 | +50.0 (" in last
    assert last.endswith("| 50.0 |")


def test_a_model_is_called_by_its_name_or_its_last_part() -> None:
    assert named("a/b/run") == ("run", "a/b/run")
    assert named("AutoRound=a/b=c") == ("AutoRound", "a/b=c")

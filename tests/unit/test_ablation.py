"""The table of what each piece of the recipe is worth."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import small_model, small_tokens

from benchmarks.ablation import PIECES, Setting, table


@pytest.mark.parametrize(
    ("scheme", "target", "absent"),
    [
        ("W3A16", "any", {"rotations", "Kronecker maps", "clipping of activations", "relative loss"}),
        ("W4A4", "huggingface", {"searched start", "rotations", "Kronecker maps", "relative loss"}),
        ("W4A4KV16", "any", {"searched start"}),
    ],
)
def test_a_row_is_a_piece_the_recipe_has(tmp_path: Path, scheme: str, target: str, absent: set[str]) -> None:
    tokens = small_tokens()
    setting = Setting(small_model(tmp_path), tokens, tokens, scheme)
    head, rule, whole, *rows = list(table(setting, [0], {"target": target, "epochs": 1}))
    assert head.startswith(f"| {scheme} |")
    assert {line.count("|") for line in (head, rule, whole, *rows)} == {7}
    names = [row.split("|")[1].strip().removeprefix("without ") for row in rows]
    assert set(names) <= set(PIECES)
    assert "learned rounding" in names
    assert not absent & set(names)
    online = scheme == "W4A4KV16"
    assert ("| nothing |" in whole) != online
    assert ("Kronecker maps" in names) == online

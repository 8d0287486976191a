"""The checkpoint of random numbers that memory is measured with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.synthetic_llama import write_checkpoint
from omniquant.models.load import load_model
from omniquant.models.spec import BlockSpec

ROOT = Path(__file__).resolve().parents[2]


def test_shards_are_read_as_a_llama(tmp_path):
    spec = BlockSpec(32, 48, 4, 2, 8)
    write_checkpoint(tmp_path, spec, layers=5, vocab=1500, positions=64)
    model = load_model(tmp_path)
    assert (model.spec, model.num_layers, model.source) == (spec, 5, "safetensors bfloat16")
    assert len(model.files()) == 4
    for index in range(5):
        weights = model.block(index)
        assert all(np.isfinite(values).all() for values in weights.values())
        np.testing.assert_array_equal(weights["norm1.weight"], 1)
        assert 0.015 < weights["gate.weight"].std() < 0.025
    assert not np.array_equal(model.lm_head(), model.embed(np.arange(1500)))


def test_the_command_measures_every_block(tmp_path):
    arguments = "--hidden 32 --ffn 48 --heads 4 --kv-heads 2 --vocab 100 --samples 3 --seqlen 16 --threads 1"
    command = [sys.executable, "-m", "benchmarks.synthetic_llama", str(tmp_path), *arguments.split()]
    done = subprocess.run([*command, "--memory", "0"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["blocks"]) == 2
    assert found["peak_rss_mib"] >= max(block["peak_rss_mib"] for block in found["blocks"]) > 10
    assert {"seconds_per_step", "seconds_per_block", "hours_of_32_blocks"} <= set(found)
    command += ["--limit-gib", "0.001"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120).returncode == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", *[".safetensors"] * 3]

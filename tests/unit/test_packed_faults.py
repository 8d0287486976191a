"""Hostile result directories and failing allocations: an error of ours, never a crash or a wrong token."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from runnable import RandomModel
from small_run import small_model, small_tokens

import omniquant
from omniquant import _core
from omniquant.errors import CheckpointError
from omniquant.manifest import _text
from omniquant.models.spec import BlockSpec
from omniquant.quantized import QuantizedModel
from omniquant.runtime.engine import Engine

SPEC = BlockSpec(hidden_size=32, ffn_size=40, num_heads=4, num_kv_heads=2, head_dim=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a result directory at W4A8g8."""
    folder = tmp_path_factory.mktemp("faults")
    model = small_model(folder / "model")
    omniquant.calibrate(
        model, small_tokens(), "W4A8g8", method="rtn", output=folder / "result", progress=False
    )
    return folder / "result"


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def run(folder):
    return QuantizedModel.load(folder).generate([1, 2, 3], max_new_tokens=3)


def rewrite(folder, name, change):
    """Change a file's tensors and let the manifest agree, as whoever wants to harm would."""
    path = folder / name
    tensors = {key: np.array(value) for key, value in safetensors.numpy.load(path.read_bytes()).items()}
    change(tensors)
    path.write_bytes(safetensors.numpy.save(tensors))
    manifest = folder / "manifest.json"
    body = json.loads(manifest.read_text())
    body.pop("sha256")
    for entry in [*body["files"], *body["blocks"]]:
        if entry["file"] == name:
            entry["bytes"] = path.stat().st_size
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_bytes(_text(body))


def cut(name, rows):
    return lambda tensors: tensors.update({name: tensors[name][:rows]})


def put(name, value, at=(0, 0)):
    return lambda tensors: tensors[name].__setitem__(at, value)


BLOCK, OUTER = "block_00001.safetensors", "outer.safetensors"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (BLOCK, cut("q.codes", 3), "q.codes is uint8"),
        (BLOCK, cut("down.scale", 3), "down.scale is float32"),
        (BLOCK, put("up.scale", np.nan), "up.scale holds NaN"),
        (BLOCK, put("up.scale", np.inf), "up.scale holds NaN or infinity"),
        (BLOCK, put("up.scale", -1.0), "scales are positive"),
        (BLOCK, put("k.zero_point", 16), "k.zero_point holds 16"),
        (BLOCK, put("norm1.weight", np.nan, 0), "norm1.weight holds NaN"),
        (BLOCK, lambda t: t.pop("v.codes"), "'v.codes' is missing"),
        (BLOCK, lambda t: t.update({"v.codes": t["v.codes"].astype(np.float32)}), "v.codes is float32"),
        (BLOCK, lambda t: t.update({"q.scale": t["q.scale"][:, :1]}), "q.scale is float32"),
        (
            OUTER,
            lambda t: t.update({"embedding.weight": t["embedding.weight"][:, :3]}),
            "embedding.weight is",
        ),
    ],
)
def test_lies_are_refused_by_name(copy, file, change, message):
    rewrite(copy, file, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        run(copy)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [BLOCK, OUTER, "text.json", "tokenizer.json", "config.json"])
def test_truncated_files_are_refused_by_name(copy, name):
    path = copy / name
    data = path.read_bytes()
    for keep in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(CheckpointError, match=name):
            run(copy)


@pytest.mark.parametrize("scheme", ["W4A8g7", "W4A8g16", "W3A8", "W8A8g8"])
def test_another_scheme_than_the_files_is_refused(copy, scheme):
    manifest = copy / "manifest.json"
    body = json.loads(manifest.read_text())
    body.pop("sha256")
    manifest.write_bytes(_text(body | {"scheme": scheme}))
    with pytest.raises(CheckpointError, match=r"block_00000|scale|codes"):
        run(copy)


def test_settings_that_lie_are_refused(copy):
    for text in ('{"eos": "x"}', '{"bos": -1}', '{"add_bos": 3}', '{"chat_template": 5}', "[]"):
        rewrite_text(copy, text)
        with pytest.raises(CheckpointError, match=r"text\.json"):
            run(copy)


def rewrite_text(folder, text):
    (folder / "text.json").write_text(text)
    manifest = folder / "manifest.json"
    body = json.loads(manifest.read_text())
    body.pop("sha256")
    for entry in body["files"]:
        if entry["file"] == "text.json":
            entry["bytes"], entry["sha256"] = len(text), hashlib.sha256(text.encode()).hexdigest()
    manifest.write_bytes(_text(body))


@pytest.mark.parametrize("persistent", [False, True])
def test_every_allocation_may_fail(persistent):
    """Each one once: MemoryError, and the next call is right."""
    model = RandomModel(SPEC, "W4A4K8V3", biases=True, online=True)
    tokens = np.arange(20)
    expected = Engine(model, threads=1).decoder(32).logits(tokens)

    def work():
        return Engine(model, threads=1).decoder(32).logits(tokens)

    failed = 0
    for n in range(1, 1000):
        _core._fail_allocation(n, persistent)
        try:
            work()
        except MemoryError:
            failed += 1
        else:
            break
        finally:
            _core._fail_allocation(0, False)
    else:
        pytest.fail("allocations never end")
    assert failed > 10
    np.testing.assert_array_equal(work(), expected)


def test_a_failed_step_leaves_the_decoder_as_it_was():
    decoder = Engine(RandomModel(SPEC, "W4A8"), threads=1).decoder(64)
    decoder.fill(np.arange(30))
    expected = decoder.next_logits([7])
    decoder.rewind(30)
    _core._fail_allocation(1, True)
    try:
        with pytest.raises(MemoryError):
            decoder.next_logits([7])
    finally:
        _core._fail_allocation(0, False)
    assert decoder.length == 30
    np.testing.assert_array_equal(decoder.next_logits([7]), expected)

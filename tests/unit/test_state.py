"""The result directory: what it holds, that damage is found and named, and what a resumed run makes of it."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_run import contents, rewrite_manifest, small_folder, small_model, small_tokens

import omniquant
from omniquant import CalibrationResult, QuantConfig
from omniquant.blockfile import BlockState, from_bytes, linear_shapes, online_maps, to_tensors
from omniquant.errors import CheckpointError
from omniquant.manifest import Manifest
from omniquant.models.load import load_model
from omniquant.progress import Callback
from omniquant.report import BlockReport
from omniquant.state import RUN_NAME, MemoryStore, StateDirectory, block_name

OPTIONS = {"method": "affinequant", "epochs": 1, "progress": False, "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    omniquant.calibrate(model, small_tokens(), "W3A16g8", output=folder, **OPTIONS)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def resume(model, folder, **options):
    return omniquant.calibrate(
        model, small_tokens(), "W3A16g8", output=folder, resume=True, **(OPTIONS | options)
    )


def read_all(folder):
    """Touch every byte a user of the result would."""
    model = CalibrationResult.load(folder).fold()
    return [model.block(index) for index in range(model.num_layers)], model.lm_head()


def rewrite_block(folder, change, index=0):
    """Change the tensors of a block and make the manifest agree."""
    path = folder / block_name(index)
    tensors = dict(safetensors.numpy.load(path.read_bytes()))
    change(tensors)
    path.write_bytes(safetensors.numpy.save(tensors))

    def agree(body):
        entry = body["blocks"][index]
        entry["bytes"], entry["sha256"] = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()

    rewrite_manifest(folder, agree)


def test_directory_needs_the_model_no_more(finished, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "moved")
    assert sorted(path.name for path in moved.iterdir()) == [
        "block_00000.safetensors", "block_00001.safetensors", "config.json", "manifest.json",
        "outer.safetensors", "run.json", "text.json", "tokenizer.json",
    ]  # fmt: skip
    model = CalibrationResult.load(moved).fold()
    assert model.tokenizer.encode("abc").ids
    assert (model.num_layers, model.vocab_size, model.max_positions) == (2, 64, 128)
    assert model.config["model_type"] == "llama"


def test_codes_are_packed_and_a_tied_head_is_stored_once(finished):
    tensors = safetensors.numpy.load((finished / block_name(0)).read_bytes())
    assert tensors["q.codes"].shape == (16, 6)  # 16 codes of 3 bits
    assert tensors["down.scale"].shape == (16, 3)  # 20 inputs in groups of 8: the last one is shorter
    outer = safetensors.numpy.load((finished / "outer.safetensors").read_bytes())
    assert sorted(outer) == ["embedding.weight", "final_norm.weight"]


def test_half_precision_is_kept_where_it_loses_nothing(tmp_path):
    for dtype, expected in (("float16", np.float16), ("float32", np.float32)):
        model = small_model(tmp_path / dtype, dtype=dtype)
        folder = tmp_path / f"{dtype}-out"
        omniquant.calibrate(model, small_tokens(), "W4A16", method="rtn", output=folder, progress=False)
        outer = safetensors.numpy.load((folder / "outer.safetensors").read_bytes())
        assert outer["embedding.weight"].dtype == expected
        np.testing.assert_array_equal(CalibrationResult.load(folder).fold().lm_head(), model.lm_head())


def test_a_model_without_tokenizer_is_stored_without(tmp_path):
    model = small_model(tmp_path / "model", tokenizer=False)
    omniquant.calibrate(model, small_tokens(), "W4A16", method="rtn", output=tmp_path / "out", progress=False)
    with pytest.raises(CheckpointError, match=r"tokenizer.json"):
        _ = CalibrationResult.load(tmp_path / "out").fold().tokenizer


def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    folder = small_folder(tmp_path / "model")
    other = small_folder(tmp_path / "other")
    text = json.loads((other / "tokenizer.json").read_text())
    text["model"]["vocab"]["zzz"] = 900
    (folder / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="tokenizer"):
        omniquant.calibrate(
            load_model(folder), small_tokens(), "W4A16", method="rtn", output=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_every_truncation_is_found_and_named(copy):
    for path in sorted(copy.iterdir()):
        data = path.read_bytes()
        if path.name == RUN_NAME:
            continue
        for length in {0, 1, 7, 8, 9, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError) as caught:
                read_all(copy)
            assert path.name in str(caught.value)
            assert "\n" not in str(caught.value)
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name):
            read_all(copy)
        path.write_bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_bit_is_found(copy, data):
    path = data.draw(st.sampled_from([path for path in sorted(copy.iterdir()) if path.name != RUN_NAME]))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) * 8 - 1))
    content[position // 8] ^= 1 << (position % 8)
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(CheckpointError, match=path.name):
            read_all(copy)
    finally:
        path.write_bytes(original)


def test_run_json_is_for_people_and_its_damage_no_error(copy):
    for text in ("", "[]", '{"seconds": "long", "seconds_of_block": {"x": 1, "0": "y"}}'):
        (copy / RUN_NAME).write_text(text)
        assert CalibrationResult.load(copy).blocks[0].seconds == 0.0
    (copy / RUN_NAME).unlink()
    assert len(read_all(copy)[0]) == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "zip", "format"),
        ("format_version", 99, "another version of omniquant"),
        ("scheme", "W4", "scheme 'W4'"),
        ("scheme", 4, "scheme"),
        ("options", {}, "options"),
        ("options", None, "options"),
        ("model", {"name": "x"}, "source"),
        ("calibration", {"samples": -1}, "samples"),
        ("files", [{"file": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64}], "plain file name"),
        ("files", [{"file": "x", "bytes": 1, "sha256": "zz"}], "hexadecimal"),
        ("files", 3, "files"),
        ("blocks", [1], "blocks"),
        ("blocks", [{"file": "x", "bytes": 1, "sha256": "0" * 64}], "report"),
    ],
)
def test_a_manifest_that_lies_is_refused(copy, field, value, message):
    rewrite_manifest(copy, lambda body: body.update({field: value}))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_all(copy)
    assert "manifest.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.pop("steps"), "'steps' is missing"),
        (lambda report: report.update(more=1), "'more' is unknown"),
        (lambda report: report.update(steps="many"), "'steps' is 'many'"),
        (lambda report: report.update(steps=True), "'steps' is True"),
        (lambda report: report.update(trace=["x"]), "'trace'"),
        (lambda report: report.update(index=1), "report is of block 1"),
    ],
)
def test_a_report_that_lies_is_refused(copy, change, message):
    rewrite_manifest(copy, lambda body: change(body["blocks"][0]["report"]))
    with pytest.raises(CheckpointError, match=message):
        read_all(copy)


def test_more_blocks_than_layers_are_refused(copy):
    rewrite_manifest(copy, lambda body: body["blocks"].append(body["blocks"][1]))
    with pytest.raises(CheckpointError, match="3 of a model that has 2"):
        read_all(copy)


def test_a_spec_that_makes_no_sense_is_refused(copy):
    rewrite_manifest(copy, lambda body: body["model"]["spec"].update(num_heads=0))
    with pytest.raises(CheckpointError, match="num_heads"):
        read_all(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("q.codes"), "'q.codes' is missing"),
        (lambda t: t.update({"q.more": t["q.scale"]}), "'q.more' is unknown"),
        (
            lambda t: t.update({"q.codes": t["q.codes"][:, :-1]}),
            r"q.codes is uint8 \[16, 5\], expected uint8 \[16, 6\]",
        ),
        (lambda t: t.update({"up.scale": t["up.scale"].astype(np.float16)}), "up.scale is float16"),
        (lambda t: t.update({"o.scale": -t["o.scale"]}), "scales are positive"),
        (lambda t: t.update({"o.scale": t["o.scale"] * np.float32(np.nan)}), "o.scale holds NaN or infinity"),
        (lambda t: t.update({"v.zero_point": t["v.zero_point"] * 0 + 8}), "holds 8, too large for 3 bits"),
        (
            lambda t: t.update({"norm1.weight": t["norm1.weight"] * np.float32(np.inf)}),
            "norm1.weight holds NaN",
        ),
    ],
)
def test_a_block_that_lies_is_refused(copy, change, message):
    rewrite_block(copy, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_all(copy)
    assert "block_00000.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("final_norm.weight"), "'final_norm.weight' is missing"),
        (lambda t: t.update(more=np.zeros(1, np.float32)), "'more' is unknown"),
        (
            lambda t: t.update({"embedding.weight": t["embedding.weight"][:5]}),
            r"embedding.weight is F32 \[5, 16\]",
        ),
    ],
)
def test_outer_tensors_that_lie_are_refused(copy, change, message):
    path = copy / "outer.safetensors"
    tensors = dict(safetensors.numpy.load(path.read_bytes()))
    change(tensors)
    path.write_bytes(safetensors.numpy.save(tensors))

    def agree(body):
        entry = next(entry for entry in body["files"] if entry["file"] == path.name)
        entry["bytes"], entry["sha256"] = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()

    rewrite_manifest(copy, agree)
    with pytest.raises(CheckpointError, match=message):
        read_all(copy)


class Messages(Callback):
    def __init__(self):
        self.lines, self.blocks = [], []

    def on_message(self, line):
        self.lines.append(line)

    def on_block(self, report):
        self.blocks.append(report.index)


@pytest.mark.parametrize(
    "name", ["block_00000.safetensors", "block_00001.safetensors", "outer.safetensors", "config.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_resume_makes_damaged_files_again_and_says_which(model, finished, copy, name, damage):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-3])
    messages = Messages()
    resume(model, copy, callbacks=[messages])
    assert contents(copy) == contents(finished)
    assert [name in line for line in messages.lines] == [True]
    assert messages.blocks == ([int(name[6:11])] if name.startswith("block") else [])


def test_resume_of_a_finished_result_does_nothing(model, finished, copy):
    stamps = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    messages = Messages()
    result = resume(model, copy, callbacks=[messages])
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == stamps
    assert (messages.lines, messages.blocks, result.complete) == ([], [], True)
    assert result.seconds == CalibrationResult.load(finished).seconds > 0


def test_a_block_that_comes_out_otherwise_takes_those_behind_it_along(model, finished, copy):
    # As after a move to a machine with other arithmetic: block 1 was trained behind another block 0.
    def other(body):
        body["blocks"][0]["sha256"] = "0" * 64

    rewrite_manifest(copy, other)
    messages = Messages()
    resume(model, copy, callbacks=[messages])
    assert messages.blocks == [0, 1]
    assert contents(copy) == contents(finished)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 2}, "epochs 1, not 2"),
        ({"method": "omniquant"}, "method affinequant, not omniquant"),
        ({"seed": 4}, "seed 0, not 4"),
        ({"dominance": "reject"}, "dominance project, not reject"),
    ],
)
def test_resume_of_another_calibration_is_refused(model, copy, options, message):
    before = contents(copy)
    with pytest.raises(CheckpointError, match=f"cannot be resumed: it was made with {message}"):
        resume(model, copy, **options)
    assert contents(copy) == before


def test_resume_with_another_scheme_model_or_data_is_refused(model, copy, tmp_path):
    call = {**OPTIONS, "output": copy, "resume": True}
    with pytest.raises(CheckpointError, match="scheme W3A16g8, not W4A4"):
        omniquant.calibrate(model, small_tokens(), "W4A4", **call)
    with pytest.raises(CheckpointError, match="other calibration data"):
        omniquant.calibrate(model, small_tokens(seed=9), "W3A16g8", **call)
    with pytest.raises(CheckpointError, match="calibration samples 4, not 3"):
        omniquant.calibrate(model, small_tokens()[:3], "W3A16g8", **call)
    other = small_model(tmp_path / "other", rope_theta=500.0)
    with pytest.raises(CheckpointError, match=r"model .* not other"):
        omniquant.calibrate(other, small_tokens(), "W3A16g8", **call)


def test_a_result_is_never_overwritten_nor_a_foreign_folder_filled(model, finished, tmp_path):
    call = {"method": "rtn", "progress": False}
    with pytest.raises(CheckpointError, match="holds a result already"):
        omniquant.calibrate(model, small_tokens(), "W4A16", output=finished, **call)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for resuming in (False, True):
        with pytest.raises(CheckpointError, match=r"is not empty \(it holds 'thesis.tex'\)"):
            omniquant.calibrate(
                model, small_tokens(), "W4A16", output=tmp_path / "mine", resume=resuming, **call
            )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_what_a_killed_start_left_behind_is_no_obstacle(model, finished, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / ".block_00000.safetensors.12.ab12.tmp").write_bytes(b"half")
    (folder / ".outer.safetensors.12.ab12.tmp").write_bytes(b"half")
    resume(model, folder)
    assert contents(folder) == contents(finished)


def test_a_failed_start_leaves_nothing_new(model, tmp_path, monkeypatch):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        resume(model, tmp_path / "deep" / "er" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="No space left on device"):
        resume(model, tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_manifest_too_large_is_not_read(copy, monkeypatch):
    monkeypatch.setattr("omniquant.manifest._MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="larger than the 100 bytes"):
        read_all(copy)


def test_directories_that_are_none_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no manifest.json, so no result"):
        CalibrationResult.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="no manifest"):
        CalibrationResult.load(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be the output directory"):
        StateDirectory.create(tmp_path / "file", None, None)


def test_a_block_that_is_not_there_is_an_error(finished):
    directory = StateDirectory.open(finished)
    for index in (-1, 2):
        with pytest.raises(CheckpointError, match="is not finished"):
            directory.get(index)


def test_memory_store_takes_blocks_in_order():
    store = MemoryStore()
    with pytest.raises(ValueError, match="block 1 does not follow"):
        store.put(1, BlockState({}, {}), BlockReport(1, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_a_block_survives_its_file(model, bits, tmp_path):
    scheme = QuantConfig(bits, 16, 8)
    result = omniquant.calibrate(model, small_tokens(), scheme, method="rtn", progress=False, threads=1)
    state = result.state(1)
    data = safetensors.numpy.save(to_tensors(state, scheme.block(1)))
    back = from_bytes(data, model.spec, scheme.block(1), "there")
    assert set(back.folded) == set(state.folded)
    for name, values in state.folded.items():
        np.testing.assert_array_equal(back.folded[name], values)
    assert online_maps(back.folded) == {}


def test_garbage_is_no_block(model):
    with pytest.raises(CheckpointError, match="there: not a valid safetensors file"):
        from_bytes(b"garbage!" * 4, model.spec, QuantConfig(4, 16).block(0), "there")


def test_shapes_are_those_of_the_model(model):
    for name, shape in linear_shapes(model.spec).items():
        assert model.block(0)[f"{name}.weight"].shape == shape

"""What objects say of themselves in a notebook: one short line, and no weight is read for it."""

from __future__ import annotations

import numpy as np
import pytest
from small_run import small_model, small_tokens

import omniquant
from omniquant.blockfile import BlockState
from omniquant.checkpoint.safetensors_reader import SafetensorsFolder
from omniquant.kernels import Linear
from omniquant.linear import calibrate_linear
from omniquant.models.model import Model
from omniquant.models.view import ModelView
from omniquant.quantized import CalibrationResult, QuantizedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def result(model):
    return omniquant.calibrate(model, small_tokens(1), "W4A16g4", method="rtn", progress=False)


def test_models_tell_name_sizes_and_source(model, monkeypatch):
    def read(*arguments):
        raise AssertionError("a repr reads no weights")

    monkeypatch.setattr(SafetensorsFolder, "load", read)
    monkeypatch.setattr(SafetensorsFolder, "load_rows", read)
    assert repr(model) == "Model('tiny', 2 blocks, hidden 16, safetensors float32)"
    assert repr(ModelView(model)) == "ModelView('tiny', 2 blocks, hidden 16, safetensors float32)"


def test_results_tell_scheme_and_method(result, tmp_path):
    assert repr(result) == "CalibrationResult('tiny', W4A16g4 rtn, 2/2 blocks in memory)"
    assert repr(result.fold()) == "QuantizedModel('tiny', W4A16g4 rtn, 2 blocks)"
    folder = tmp_path / "two\nlines"
    result.save(folder)
    assert repr(CalibrationResult.load(folder)).endswith(f", 2/2 blocks in {str(folder)!r})")


def test_blocks_tell_what_they_hold_and_no_numbers(result):
    tensors = len(result.state(0).folded)
    assert repr(result.state(0)) == (
        f"BlockState(codes of q, k, v, o, gate, up, down; {tensors} tensors, 0 learnables)"
    )
    assert repr(BlockState({}, {})) == "BlockState(no codes; 0 tensors, 0 learnables)"


def test_calibrated_linears_tell_shape_and_loss_and_no_arrays():
    random = np.random.default_rng(0)
    weight, x = random.standard_normal((2, 8, 8)).astype(np.float32)
    found = calibrate_linear(weight, x, "W4A16", epochs=1)
    losses = f"loss {found.loss_initial:.3g} -> {found.loss_final:.3g}"
    assert repr(found) == f"LinearResult(8 x 8, W4A16, {losses}, kept {found.kept})"


def test_packed_linears_tell_shape_bits_and_kernel():
    codes, scales = np.zeros((4, 64), np.uint8), np.ones((4, 2), np.float32)
    linear = Linear(codes, scales, bits=4, group_size=32, kernel="reference")
    assert repr(linear) == "Linear(64 -> 4, W4, group_size 32, int8 activations, kernel reference)"
    linear = Linear(
        codes.tolist(), scales[:, :1], bits=3, activations="int4", symmetric_activations=True, threads=1
    )
    assert repr(linear) == f"Linear(64 -> 4, W3, symmetric int4 activations, kernel {linear.kernel})"


@pytest.mark.parametrize("kind", [Model, QuantizedModel, CalibrationResult, BlockState, Linear])
def test_an_object_half_made_raises_nothing(kind):
    assert repr(object.__new__(kind)) == f"{kind.__name__}(not to be told: AttributeError)"

"""Kinds of products of a training step: what is exact, and what rounding to bfloat16 changes."""

import numpy as np
import pytest
from random_blocks import LINEARS, Case, Draw
from small_run import small_model, small_tokens
from ways import AVAILABLE, KINDS, needs_bfloat16, needs_integer

from omniquant import CalibrationOptions, QuantConfig, _core, calibrate
from omniquant.blockfile import dequantized, row_codes
from omniquant.errors import ConfigError, UnsupportedError
from omniquant.models.model import Model


def block(seed: int, quirks: bool = False, **forced: object) -> Case:
    """Return a random block wide enough for the fast kernels to be used."""
    sizes = {"hidden_size": 48, "ffn_size": 96, "head_dim": 8, "samples": 3, "tokens": 24}
    return Draw(seed, quirks=quirks, **{**sizes, **forced}).case()


def direction_of(case: Case, products: str, gradients: str = "float") -> tuple[float, np.ndarray]:
    case.options |= {"products": products, "gradients": gradients}
    loss, gradients = case.loss(_core)
    return loss, np.concatenate([np.ravel(gradients[name]) for name in sorted(gradients)])


@needs_integer
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_integer_products_are_those_of_fake_quantization(bits: int) -> None:
    """The same losses and gradients but for the order of float sums.

    Where that order turns a later rounding round, a code moves by one; hence not on every block.
    """
    errors = []
    for seed in range(20):
        quantizers = {"bits": bits, "q_bits": 16, "k_bits": 16, "v_bits": 16}
        case = block(seed, w_bits=min(bits, 7), group_size=0, **quantizers)
        (plain, g), (integer, h) = direction_of(case, "float32"), direction_of(case, "integer")
        errors.append(max(abs(integer / plain - 1), np.linalg.norm(h - g) / np.linalg.norm(g)))
    assert np.median(errors) <= 1e-5
    assert max(errors) <= 0.3


@needs_integer
@pytest.mark.parametrize(("w_bits", "bits"), [(4, 4), (3, 6), (8, 8)])
def test_a_block_of_codes_multiplies_integers(w_bits: int, bits: int) -> None:
    """As behind a calibrated block; at 8 bits some q - z are no bytes, and those linears stay in float."""
    errors = []
    for seed in range(20):
        quantizers = {"bits": bits, "q_bits": 16, "k_bits": 16, "v_bits": 16}
        case = block(seed, w_bits=w_bits, group_size=0, lac=False, **quantizers)
        folded = case.fold(_core)
        weights = dequantized(folded, dict.fromkeys(LINEARS, QuantConfig.parse(f"W{w_bits}A16")))
        arguments = (case.spec, weights, case.x_q, case.cos, case.sin)
        keywords = {"activation": case.options["activation"]}
        plain = _core.block_forward(*arguments, **keywords)
        summed = _core.block_forward(*arguments, **keywords, codes=row_codes(folded))
        errors.append(np.linalg.norm(summed - plain) / np.linalg.norm(plain))
        if w_bits < 8:
            assert (summed != plain).any()
        again = _core.block_forward(*arguments, **keywords, codes=row_codes(folded), threads=3)
        np.testing.assert_array_equal(again, summed)
    assert np.median(errors) <= 1e-6


@needs_bfloat16
@pytest.mark.parametrize(("w_bits", "bits"), [(3, 16), (4, 16), (4, 8), (6, 6)])
def test_bfloat16_gradients_point_where_float_gradients_do(w_bits: int, bits: int) -> None:
    quantizers = {"bits": bits, "q_bits": 16, "k_bits": 16, "v_bits": 16}
    cosines, losses = [], []
    for seed in range(20):
        case = block(seed, w_bits=w_bits, group_size=0, **quantizers)
        (plain, g), (rounded, h) = direction_of(case, "float32"), direction_of(case, "bfloat16")
        losses.append(abs(rounded / plain - 1))
        cosines.append(g @ h / (np.linalg.norm(g) * np.linalg.norm(h)))
    assert np.median(losses) <= 0.01
    assert np.median(cosines) >= 0.995


@needs_integer
@pytest.mark.parametrize("products", AVAILABLE)
@pytest.mark.parametrize(
    ("w_bits", "bits", "group_size"), [(3, 16, 0), (4, 4, 0), (4, 8, 0), (4, 16, 16), (4, 4, 16), (8, 6, 0)]
)
def test_gradients_in_bytes_point_where_float_gradients_do(
    products: str, w_bits: int, bits: int, group_size: int
) -> None:
    """Their loss is the same: nothing on the way forward is rounded by them."""
    quantizers = {"bits": bits, "q_bits": 16, "k_bits": 16, "v_bits": 16}
    cosines = []
    for seed in range(20):
        case = block(seed, w_bits=w_bits, group_size=group_size, **quantizers)
        (plain, g), (rounded, h) = direction_of(case, products), direction_of(case, products, "int8")
        assert rounded == plain
        assert (h != g).any()
        cosines.append(g @ h / (np.linalg.norm(g) * np.linalg.norm(h)))
    assert np.median(cosines) >= 0.999


@needs_integer
@pytest.mark.parametrize("bits", [4, 16])
def test_gradients_in_bytes_of_more_rows_than_go_back_at_once(bits: int) -> None:
    """128 of them: those of every learnable, as those of the first rows alone could be right."""
    quantizers = {"bits": bits, "q_bits": 16, "k_bits": 16, "v_bits": 16}
    for seed in range(4):
        case = block(seed, ffn_size=300, w_bits=4, group_size=0, lwc=True, input_map="none", **quantizers)
        case.options |= {"products": "integer"}
        found = {}
        for gradients in ("float", "int8"):
            case.options |= {"gradients": gradients}
            found[gradients] = case.loss(_core)[1]
        for name in ("gate.lwc_max", "up.lwc_max", "up.lwc_min"):
            g, h = np.ravel(found["float"][name]), np.ravel(found["int8"][name])
            assert g @ h / (np.linalg.norm(g) * np.linalg.norm(h)) >= 0.999, name


@needs_integer
def test_gradients_in_bytes_serve_experts_and_linears_in_float() -> None:
    for seed in range(8):
        case = block(seed, quirks=True, w_bits=4, group_size=0, bits=4 if seed % 2 else 16)
        (plain, g), (rounded, h) = direction_of(case, "integer"), direction_of(case, "integer", "int8")
        assert rounded == plain
        assert g @ h / (np.linalg.norm(g) * np.linalg.norm(h)) >= 0.98


@needs_bfloat16
def test_bfloat16_gradients_add_up_over_tiles_of_a_long_window() -> None:
    """Attention goes through a window in tiles of 128 queries, which all add to the keys' gradients."""
    quantizers = {"bits": 16, "q_bits": 16, "k_bits": 16, "v_bits": 16}
    for seed in range(4):
        case = block(seed, samples=1, tokens=300, w_bits=4, group_size=0, **quantizers)
        (plain, g), (rounded, h) = direction_of(case, "float32"), direction_of(case, "bfloat16")
        assert rounded == pytest.approx(plain, rel=0.02)
        assert g @ h / (np.linalg.norm(g) * np.linalg.norm(h)) >= 0.99


@pytest.mark.parametrize("heads", [1, 2])
def test_a_forward_pass_in_parts_is_close_to_float_and_bit_equal_at_any_thread_count(heads: int) -> None:
    """Elsewhere than on AMX it is the very same pass."""
    for seed in range(6):
        case = block(seed, samples=2, tokens=150, num_kv_heads=heads)
        arguments = (case.spec, case.weights, case.x_q, case.cos, case.sin)
        plain = _core.block_forward(*arguments)
        parts = _core.block_forward(*arguments, in_parts=True)
        assert np.linalg.norm(parts - plain) <= 2e-5 * np.linalg.norm(plain)
        np.testing.assert_array_equal(parts, _core.block_forward(*arguments, in_parts=True, threads=3))


@pytest.mark.parametrize("gradients", ["float", "int8"][: len(AVAILABLE)])
@pytest.mark.parametrize("products", AVAILABLE)
@pytest.mark.parametrize("scheme", ["W4A4", "W3A16", "W8A8", "W3A16g16", "W4A4g16"])
def test_every_kind_trains_and_is_bit_equal_at_any_thread_count(
    tmp_path_factory: pytest.TempPathFactory, products: str, gradients: str, scheme: str
) -> None:
    model = small_model(tmp_path_factory.mktemp("model"))
    runs = [
        calibrate(
            model,
            small_tokens(),
            scheme,
            method="affinequant",
            epochs=3,
            products=products,
            gradients=gradients,
            threads=threads,
            progress=False,
        )
        for threads in (1, 2, 3)
    ]
    for run in runs[1:]:
        for index in range(model.num_layers):
            first, other = runs[0].fold().state(index), run.fold().state(index)
            for name, values in first.folded.items():
                np.testing.assert_array_equal(values, other.folded[name])
    for report in runs[0].blocks:
        assert report.loss_final <= report.loss_initial


def final_loss(model: Model, scheme: str, products: str, seed: int, gradients: str = "float") -> float:
    options = {"products": products, "gradients": gradients, "seed": seed}
    run = calibrate(model, small_tokens(), scheme, epochs=10, threads=1, progress=False, **options)
    return sum(report.loss_final for report in run.blocks)


@needs_integer
def test_training_on_integers_ends_where_training_on_floats_does(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = small_model(tmp_path_factory.mktemp("model"))
    for seed in range(2):
        plain, integer = (final_loss(model, "W4A8", kind, seed) for kind in ("float32", "integer"))
        assert integer == pytest.approx(plain, rel=1e-3)


@needs_bfloat16
def test_training_in_bfloat16_ends_no_worse(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a model this small single runs differ by a tenth either way; their mean must not."""
    model = small_model(tmp_path_factory.mktemp("model"))
    ratios = [
        final_loss(model, scheme, "bfloat16", seed) / final_loss(model, scheme, "float32", seed)
        for scheme in ("W4A8", "W4A4", "W3A16")
        for seed in range(3)
    ]
    assert np.exp(np.mean(np.log(ratios))) <= 1.05


@needs_integer
def test_training_with_gradients_in_bytes_ends_no_worse(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a model this small single runs differ by a tenth either way; their mean must not."""
    model = small_model(tmp_path_factory.mktemp("model"))
    kind = AVAILABLE[-1]
    ratios = [
        final_loss(model, scheme, kind, seed, "int8") / final_loss(model, scheme, kind, seed)
        for scheme in ("W4A8", "W4A4", "W3A16", "W3A16g16")
        for seed in range(3)
    ]
    assert np.exp(np.mean(np.log(ratios))) <= 1.05


def test_auto_becomes_a_kind_of_this_processor_and_is_written_down(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = small_model(tmp_path_factory.mktemp("model"))
    run = calibrate(model, small_tokens(), "W4A8", epochs=1, progress=False)
    assert run.header.options.products == AVAILABLE[-1]
    assert run.header.options.gradients == _core.runtime_info()["gradients"]


def test_auto_keeps_float_products_where_bfloat16_would_drown_the_error() -> None:
    scheme = QuantConfig.parse("W8A16")
    options = CalibrationOptions.for_method("omniquant", scheme)
    fastest = options.with_products(scheme, "bfloat16", "int8")
    assert (fastest.products, fastest.gradients) == ("integer", "float")
    assert options.with_products(scheme, "float32", "float").products == "float32"
    chosen = CalibrationOptions.for_method("omniquant", scheme, products="bfloat16", gradients="int8")
    assert chosen.with_products(scheme, "float32", "float") == chosen


@pytest.mark.parametrize(
    ("products", "gradients", "expected"),
    [("auto", "auto", "int8"), ("auto", "float", "float"), ("float32", "auto", "float")],
)
def test_gradients_are_rounded_unless_floats_are_asked_for(
    products: str, gradients: str, expected: str
) -> None:
    scheme = QuantConfig.parse("W4A4")
    options = CalibrationOptions.for_method("omniquant", scheme, products=products, gradients=gradients)
    assert options.with_products(scheme, "bfloat16", "int8").gradients == expected
    assert options.with_products(scheme, "bfloat16", "float").gradients == "float"


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="products 'float64' is not one of auto, float32, integer, bfloat16"
    ):
        CalibrationOptions.for_method("omniquant", QuantConfig.parse("W4A4"), products="float64")


@pytest.mark.skipif("integer" in AVAILABLE, reason="this processor has them")
def test_gradients_the_processor_lacks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="gradients int8"):
        direction_of(block(0), "float32", "int8")


@pytest.mark.skipif(AVAILABLE == KINDS, reason="this processor has every kind")
def test_kinds_the_processor_lacks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="products bfloat16"):
        direction_of(block(0), "bfloat16")


@needs_integer
def test_experts_take_every_kind_of_product() -> None:
    """Rows of stacked codes and of gathered tokens are those of fake quantization, whatever the form."""
    kinds = AVAILABLE[1:]
    experts = {"num_experts": 3, "experts_per_token": 2, "shared_ffn_size": 40}
    plain = {"up_down": False, "input_map": "none", "rotate_down": False, "post_norms": False}
    bits = {"w_bits": 6, "bits": 8, "q_bits": 16, "k_bits": 16, "v_bits": 16, "group_size": 0}
    losses: dict[str, list[float]] = {kind: [] for kind in kinds}
    cosines: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(12):
        case = block(seed, quirks=True, **experts, **plain, **bits)
        loss, g = direction_of(case, "float32")
        for kind in kinds:
            other, h = direction_of(case, kind)
            losses[kind].append(abs(other / loss - 1))
            cosines[kind].append(g @ h / (np.linalg.norm(g) * np.linalg.norm(h)))
    assert np.median(losses["integer"]) <= 1e-5
    for kind in kinds:
        assert np.median(losses[kind]) <= 0.05
        assert np.median(cosines[kind]) >= 0.99

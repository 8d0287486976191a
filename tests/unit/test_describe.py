"""What a method means for a model: maps, what they cost at run time, bits a weight."""

from __future__ import annotations

import pytest

from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.describe import bits_per_weight, describe_maps, linear_parameters
from omniquant.models.spec import BlockSpec

SPEC = BlockSpec(hidden_size=64, ffn_size=172, num_heads=8, num_kv_heads=4, head_dim=8)
PLAIN = BlockSpec(
    hidden_size=8, ffn_size=16, num_heads=2, num_kv_heads=1, head_dim=4, rope=False, mlp="plain"
)


def maps(method, scheme="W4A4", spec=SPEC, **options):
    chosen = CalibrationOptions.for_method(method, QuantConfig.parse(scheme), **options)
    return {entry.site: entry for entry in describe_maps(chosen, spec)}


def test_parameters_are_counted():
    assert linear_parameters(SPEC) == 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 172
    assert linear_parameters(PLAIN) == 8 * 8 + 2 * 4 * 8 + 8 * 8 + 2 * 8 * 16


def test_methods_without_maps_have_none():
    assert maps("rtn") == {}
    assert maps("rtn", "W3A16") == {}
    assert list(maps("smoothquant")) == ["norm -> linears"]


@pytest.mark.parametrize(
    ("method", "qk", "rope", "exact"),
    [
        ("omniquant", "exact", True, True),
        ("omniquant", "scale", True, False),
        ("affinequant", "exact", True, True),
        ("affinequant", "full", True, False),
        ("affinequant", "full", False, True),
        ("omniquant", "scale", False, True),
    ],
)
def test_approximate_maps_are_called_so(method, qk, rope, exact):
    entry = maps(method, spec=SPEC if rope else PLAIN, qk_map=qk)["q <-> k"]
    assert entry.exact == exact
    assert ("APPROXIMATE" in str(entry)) == (not exact)


def test_online_maps_are_counted_and_everything_else_folds():
    found = maps("affinequant", norm_map="online", up_down=True)
    assert found["norm -> linears"].multiply_adds == 2 * 64 * 64
    assert "online: 8192 multiply-adds" in str(found["norm -> linears"])
    assert [site for site, entry in found.items() if entry.multiply_adds] == ["norm -> linears"]
    assert "up -> down" in found
    assert "folded" in str(found["v -> o"])


def test_bits_count_scales_and_zero_points():
    square = BlockSpec(hidden_size=64, ffn_size=64, num_heads=8, num_kv_heads=8, head_dim=8)
    assert bits_per_weight(QuantConfig.parse("W4A16g32"), square, 3) == 4 + (32 + 8) / 32
    assert bits_per_weight(QuantConfig.parse("W4sA16g32"), square, 3) == 4 + 32 / 32
    assert bits_per_weight(QuantConfig.parse("W2A16"), square, 3) == 2 + 40 / 64
    assert bits_per_weight(QuantConfig.parse("W16A4"), square, 3) == 32
    assert (
        bits_per_weight(QuantConfig.parse("W3A16g64"), SPEC, 3) > 3 + 40 / 64
    )  # 172 inputs: a short third group

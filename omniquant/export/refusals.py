"""What a format cannot hold, said before anything is written: the reason and the nearest thing that works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd

from omniquant.blockfile import linear_shapes
from omniquant.checkpoint.source import Layout
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.config.scheme import FLOAT_BITS
from omniquant.errors import UnsupportedError
from omniquant.models.experts import EXPERT, stored_shapes
from omniquant.models.model import Model
from omniquant.models.registry import adapter_of
from omniquant.models.spec import BlockSpec
from omniquant.models.tensors import grouped
from omniquant.quantized import QuantizedModel


@dataclass(frozen=True)
class Wish:
    """What is to be exported, known before it is calibrated.

    Parameters
    ----------
    format, variant : str
    scheme : QuantConfig
    options : CalibrationOptions
    spec : BlockSpec
    weights_only : bool
        The quantizers of activations may be left out.
    unusual : tuple of str
        What the model has outside its blocks beyond LLaMA's kind.
    gguf_lacks : tuple of str
        What of the model llama.cpp does not compute.
    fused : tuple of tuple of str
        Our names of linears that are one tensor where the format puts them.
    """

    format: str
    variant: str
    scheme: QuantConfig
    options: CalibrationOptions
    spec: BlockSpec
    weights_only: bool = False
    unusual: tuple[str, ...] = ()
    gguf_lacks: tuple[str, ...] = ()
    fused: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(
        cls,
        model: Model | QuantizedModel,
        format: str,
        variant: str,
        scheme: QuantConfig,
        options: CalibrationOptions,
        weights_only: bool = False,
    ) -> Wish:
        """Return the wish to export a model."""
        architecture = model.architecture
        adapter = adapter_of(model.config)
        unusual, lacks = architecture.unusual(), adapter.gguf_lacks(architecture)
        layout: Layout = "gguf" if format == "gguf" and adapter.gguf_architecture else "safetensors"
        refs = adapter.block_tensors(architecture, 0, layout)
        parts = grouped(refs, [f"{name}.weight" for name in stored_shapes(architecture.spec, layout)])
        fused = tuple(tuple(part.partition(".")[0] for part in names) for names in parts.values())
        return cls(format, variant, scheme, options, architecture.spec, weights_only, unusual, lacks, fused)

    def fail(self, cannot: str, nearest: str) -> UnsupportedError:
        """Return the error."""
        return UnsupportedError(f"{self.format} cannot hold {cannot}; nearest: {nearest}")

    @property
    def inputs(self) -> dict[str, int]:
        """The inputs K of every linear."""
        return inputs_of(self.spec)


def inputs_of(spec: BlockSpec) -> dict[str, int]:
    """Return the inputs K of every linear of a block."""
    return {name: columns for name, (_, columns) in linear_shapes(spec).items()}


Check = Callable[[Wish], None]


def of_each(check: Check) -> Check:
    """Make a check of uniform schemes one of mixed schemes: each of those it is mixed of must pass."""

    def check_each(wish: Wish) -> None:
        for scheme in wish.scheme.schemes:
            check(replace(wish, scheme=replace(scheme, overrides=())))

    return check_each


def one_scheme(wish: Wish) -> None:
    """Refuse mixed precision: the format's configuration knows one scheme for all linears."""
    if wish.scheme.overrides:
        raise wish.fail(
            f"mixed precision ({len(wish.scheme.overrides)} linears other than {wish.scheme.text})",
            "compressed-tensors, gguf (4 and 8 bits), onnx, openvino or huggingface",
        )


def one_scheme_a_tensor(wish: Wish) -> None:
    """Refuse linears that are one tensor there, but are rounded in different ways."""
    layers = {int(name.split(".")[1]) for name, _ in wish.scheme.overrides}
    for layer in sorted(layers):
        linears = wish.scheme.block(layer)
        for names in wish.fused:
            if len({linears[name.partition(EXPERT)[0]] for name in names}) > 1:
                raise wish.fail(
                    f"{', '.join(names)} of block {layer} at different bits: they are one tensor",
                    "one scheme for them, or huggingface",
                )


def zero_points_of_one_scheme(wish: Wish) -> None:
    """Refuse packed zero points in mixed precision: transformers unpacks them all by one scheme."""
    packed = wish.weights_only or wish.scheme.weight_only
    asymmetric = [each for each in wish.scheme.schemes if each.w_bits < FLOAT_BITS and not each.w_symmetric]
    if wish.scheme.overrides and packed and asymmetric:
        nearest = text_of(replace(asymmetric[0], overrides=()), w_symmetric=True)
        raise wish.fail(
            f"asymmetric weights ({asymmetric[0].text}) in mixed precision: transformers unpacks zero points "
            "by one scheme",
            f"scheme {nearest}, or onnx, openvino or huggingface",
        )


_LEAST_BLOCK = 16  # of MatMulNBits


def _is_block(size: int) -> bool:
    """Tell whether MatMulNBits has blocks of a size: powers of two."""
    return size >= _LEAST_BLOCK and not size & (size - 1)


def text_of(scheme: QuantConfig, **changes: object) -> str:
    """Return a scheme with some fields changed, as text."""
    return str(replace(scheme, **changes))  # type: ignore[arg-type]


def no_online_map(wish: Wish) -> None:
    """Refuse maps that are multiplied at run time: the format has no place for them."""
    if wish.options.norm_map == "online":
        raise wish.fail(
            "an online map (a full matrix behind each norm)",
            "calibrate with --norm-map diagonal, or export to onnx or openvino",
        )
    no_kronecker_map(wish)
    if wish.spec.rotate_down:
        raise wish.fail(
            "online rotations (before o and down)",
            "calibrate with --rotation folded, or export to onnx or openvino",
        )


def no_kronecker_map(wish: Wish) -> None:
    """Refuse Kronecker maps on the inputs of linears."""
    if wish.options.input_map != "none":
        raise wish.fail("online maps on the inputs of linears", "calibrate with --input-map none")


def no_experts(wish: Wish) -> None:
    """Refuse mixtures of experts: nothing that reads the format here takes their packed weights."""
    if wish.spec.num_experts:
        raise wish.fail("a mixture of experts", "compressed-tensors, gguf or huggingface")


def packed_experts(wish: Wish) -> None:
    """Refuse experts in layouts of which transformers does not make its one tensor of all experts."""
    weight_only = wish.weights_only or wish.scheme.weight_only
    if wish.spec.num_experts and wish.scheme.overrides:
        raise wish.fail("experts in mixed precision: transformers takes them by one scheme", "huggingface")
    if not wish.spec.num_experts or (weight_only and wish.scheme.w_symmetric):
        return
    nearest = QuantConfig(wish.scheme.w_bits, FLOAT_BITS, wish.scheme.group_size, True)
    what = f"experts with {'asymmetric weights' if weight_only else 'quantized activations'}"
    raise wish.fail(f"{what}, which transformers does not read", f"scheme {nearest}, or huggingface")


def float_activations(wish: Wish) -> None:
    """Refuse quantized activations: the format describes weights alone."""
    if wish.weights_only or wish.scheme.weight_only:
        return
    raise wish.fail(
        f"quantized activations, Q, K or V ({wish.scheme})",
        "--weights-only, which leaves them in float, or compressed-tensors with symmetric activations "
        "such as W8sA8sfKV16",
    )


def integer_weights(wish: Wish) -> None:
    """Refuse weights that stay in float."""
    if not wish.scheme.quantizes_weights:
        raise wish.fail(f"weights in float ({wish.scheme})", "huggingface, or gguf")


def bits(*allowed: int, symmetric_at: tuple[int, ...] = ()) -> Check:
    """Allow these numbers of bits alone; `symmetric_at`: those the format has symmetric ones of."""

    def check(wish: Wish) -> None:
        have = wish.scheme.w_bits
        if have in allowed or not wish.scheme.quantizes_weights:
            return
        above = [b for b in allowed if b >= have]
        nearest_bits = above[0] if above else allowed[-1]
        only = wish.scheme.w_symmetric or nearest_bits in symmetric_at
        nearest = text_of(wish.scheme, w_bits=nearest_bits, w_symmetric=only)
        raise wish.fail(f"{have}-bit weights", f"scheme {nearest}")

    return of_each(check)


def _one_a_row(scheme: QuantConfig, inputs: Mapping[str, int]) -> bool:
    size = scheme.group_size
    return size is None or all(size >= columns for columns in inputs.values())


def short_groups(scheme: QuantConfig, inputs: Mapping[str, int]) -> dict[str, int]:
    """Return those linears, with their inputs K, whose rows end in a shorter group under a uniform scheme."""
    if scheme.group_size is None or _one_a_row(scheme, inputs) or not scheme.quantizes_weights:
        return {}
    return {name: columns for name, columns in inputs.items() if columns % scheme.group_size}


@dataclass(frozen=True)
class WholeGroups:
    """Want every row to be whole groups, and groups multiples of `multiple`; one a row is a group too."""

    multiple: int = 1

    def __call__(self, wish: Wish) -> None:
        """Check each of the schemes a wish is mixed of."""
        of_each(self._check)(wish)

    def _check(self, wish: Wish) -> None:
        multiple, inputs, size = self.multiple, wish.inputs, wish.scheme.group_size
        if not wish.scheme.quantizes_weights:
            return
        for name, columns in inputs.items():
            if columns % multiple:
                raise wish.fail(
                    f"{name} with {columns} inputs, no multiple of {multiple}",
                    "compressed-tensors, onnx --variant dequantize-linear or openvino",
                )
        if size is None or _one_a_row(wish.scheme, inputs):
            return
        common = gcd(*inputs.values())
        fits = [g for g in range(multiple, common + 1, multiple) if common % g == 0]
        if size not in fits:
            short = next(iter(short_groups(wish.scheme, inputs).items()), None)
            no_multiple = short and f", of which {short[0]} with {short[1]} inputs is no multiple"
            why = no_multiple or f": they are multiples of {multiple}"
            raise wish.fail(f"groups of {size}{why}", _nearest_group(wish, size, fits))


def _nearest_group(wish: Wish, size: int, fits: Sequence[int]) -> str:
    best = min(fits, key=lambda g: (abs(g - size), g))
    variant = "" if wish.variant != "matmul-nbits" or _is_block(best) else " with --variant dequantize-linear"
    return f"scheme {text_of(wish.scheme, group_size=best)}{variant}"


def whole_outputs(multiple: int) -> Check:
    """Want the outputs N of every linear to be a multiple."""

    def check(wish: Wish) -> None:
        for name, (rows, _) in linear_shapes(wish.spec).items():
            if rows % multiple:
                raise wish.fail(
                    f"{name} with {rows} outputs, no multiple of {multiple}",
                    "compressed-tensors, onnx or openvino",
                )

    return check


def in_llama_cpp(wish: Wish) -> None:
    """Refuse what llama.cpp does not compute."""
    if wish.gguf_lacks:
        raise wish.fail(f"{' and '.join(wish.gguf_lacks)}: llama.cpp does not compute that", "huggingface")


def llama_like(wish: Wish) -> None:
    """Refuse what is no LLaMA-like block: the writer's graph is for those."""
    spec = wish.spec
    if spec.norm != "rms" or spec.mlp != "gated" or not spec.rope:
        raise wish.fail(
            f"a block of {spec.norm} norm, {spec.mlp} MLP{'' if spec.rope else ' and no rotary positions'}",
            "huggingface",
        )
    beyond = [*spec.extras(), *wish.unusual]
    if beyond:
        raise wish.fail(f"a model with {', '.join(beyond)}", "huggingface")


def symmetric(*of: int) -> Check:
    """Want symmetric weights at these numbers of bits."""

    def check(wish: Wish) -> None:
        if wish.scheme.w_bits in of and not wish.scheme.w_symmetric:
            nearest = text_of(wish.scheme, w_symmetric=True)
            raise wish.fail(f"asymmetric {wish.scheme.w_bits}-bit weights", f"scheme {nearest}")

    return of_each(check)


def attention_in_float(wish: Wish) -> None:
    """Refuse quantized Q, K and V."""
    scheme = wish.scheme
    if wish.weights_only:
        return
    if any(int(b or 0) < FLOAT_BITS for b in (scheme.q_bits, scheme.k_bits, scheme.v_bits)):
        floats = {"q_bits": FLOAT_BITS, "k_bits": FLOAT_BITS, "v_bits": FLOAT_BITS, "sink_tokens": 0}
        rounded = scheme.a_bits < FLOAT_BITS  # these must then suit symmetric_activations too
        nearest = text_of(scheme, **floats, a_symmetric=rounded, a_full_range=rounded)
        raise wish.fail("quantized Q, K and V", f"scheme {nearest}, or --weights-only")


@of_each
def symmetric_activations(wish: Wish) -> None:
    """Want activations per token to be symmetric with the full-range step."""
    scheme = wish.scheme
    if wish.weights_only or scheme.a_bits >= FLOAT_BITS or (scheme.a_symmetric and scheme.a_full_range):
        return
    nearest = text_of(scheme, a_symmetric=True, a_full_range=True)
    kind = (
        "symmetric activations with the step of s (it has that of sf)"
        if scheme.a_symmetric
        else "asymmetric activations"
    )
    raise wish.fail(f"{kind} ({scheme})", f"scheme {nearest}, or --weights-only")


def no_clipped_activations(wish: Wish) -> None:
    """Refuse learned clipping of activations: the format has one grid from smallest to largest."""
    if wish.options.lac and not wish.weights_only:
        raise wish.fail("clipped activations", "calibrate with --no-lac, or --weights-only")


@of_each
def nbits(wish: Wish) -> None:
    """Want what onnxruntime's MatMulNBits can hold, where that is the operator."""
    if wish.variant != "matmul-nbits" or not wish.scheme.quantizes_weights:
        return
    if wish.scheme.w_bits not in (2, 4, 8):
        raise wish.fail(f"{wish.scheme.w_bits}-bit weights in MatMulNBits", "--variant dequantize-linear")
    size = wish.scheme.group_size
    for name, columns in wish.inputs.items():
        block = min(size or columns, columns)
        if not _is_block(block):
            raise wish.fail(
                f"groups of {block} ({name}) in MatMulNBits: they are powers of two, at least {_LEAST_BLOCK}",
                "--variant dequantize-linear",
            )

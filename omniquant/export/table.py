"""The table of export formats: what each can hold and who writes it. A new format is a file and a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from omniquant.errors import ConfigError, UnsupportedError
from omniquant.export import refusals as may
from omniquant.export.content import Content

Writer = Callable[[Content, Path], None]


@dataclass(frozen=True)
class Format:
    """One export format.

    Parameters
    ----------
    title : str
        For people: what reads it.
    module : str
        Of this package; its ``write(content, folder)`` fills a folder.
    checks : tuple of callables
        Each refuses with UnsupportedError what the format cannot hold.
    needs : tuple of str
        Modules the writer imports beyond the core's, of the extra `extra`.
    variants : tuple of str
        Layouts; the first is the default.
    """

    title: str
    module: str
    checks: tuple[may.Check, ...]
    needs: tuple[str, ...] = ()
    extra: str = ""
    variants: tuple[str, ...] = ("",)

    def writer(self, name: str) -> Writer:
        """Return the writer; UnsupportedError where a package it needs is missing."""
        for module in self.needs:
            try:
                import_module(module)
            except ImportError as error:
                raise UnsupportedError(
                    f"{name}: exporting needs the {module} package: pip install 'omniquant-c[{self.extra}]'"
                ) from error
        write: Writer = import_module(f"omniquant.export.{self.module}").write
        return write


_WEIGHTS_ALONE = (
    may.one_scheme,
    may.no_experts,
    may.no_online_map,
    may.integer_weights,
    may.float_activations,
)

_GRAPH = (may.llama_like, may.no_kronecker_map, may.float_activations, may.WholeGroups())

FORMATS: dict[str, Format] = {
    "compressed-tensors": Format(
        "transformers and vLLM",
        "compressed_tensors",
        (
            may.packed_experts,
            may.no_online_map,
            may.integer_weights,
            may.attention_in_float,
            may.symmetric_activations,
            may.no_clipped_activations,
            may.zero_points_of_one_scheme,
            may.one_scheme_a_tensor,
            may.WholeGroups(),
        ),
    ),
    "gptq": Format(
        "auto-round, gptqmodel, vLLM",
        "gptq",
        (*_WEIGHTS_ALONE, may.bits(2, 3, 4, 8), may.WholeGroups(32), may.whole_outputs(32)),
        variants=("v2", "v1"),
    ),
    "awq": Format(
        "vLLM and other engines with AWQ kernels",
        "awq",
        (*_WEIGHTS_ALONE, may.bits(4), may.WholeGroups(8), may.whole_outputs(8)),
    ),
    "gguf": Format(
        "llama.cpp",
        "gguf_file",
        (
            may.one_scheme_a_tensor,
            may.no_online_map,
            may.in_llama_cpp,
            may.float_activations,
            may.bits(4, 8, symmetric_at=(8,)),
            may.symmetric(8),
            may.WholeGroups(32),
        ),
        needs=("gguf",),
        extra="gguf",
    ),
    "onnx": Format(
        "onnxruntime, and other engines of opset 21",
        "onnx_graph",
        (*_GRAPH, may.nbits),
        needs=("onnx",),
        extra="onnx",
        variants=("matmul-nbits", "dequantize-linear"),
    ),
    "openvino": Format("OpenVINO", "openvino_ir", _GRAPH, needs=("openvino",), extra="openvino"),
    "huggingface": Format(
        "anything that reads the original model; weights are dequantized",
        "huggingface",
        (may.no_online_map, may.float_activations),
    ),
}


def format_of(name: str, variant: str | None = None) -> tuple[Format, str]:
    """Return a format and the variant of it that is meant; ConfigError for unknown ones."""
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is not one of {', '.join(FORMATS)}")
    found = FORMATS[name]
    if variant is None:
        return found, found.variants[0]
    if variant not in found.variants or not variant:
        known = ", ".join(v for v in found.variants if v) or "none"
        raise ConfigError(f"{name}: variant {variant!r} does not exist, there is: {known}")
    return found, variant


def refuse(wish: may.Wish) -> None:
    """Raise UnsupportedError if the format cannot hold what is wished for."""
    found, _ = format_of(wish.format)
    for check in found.checks:
        check(wish)

"""The table of model families: one row each."""

from __future__ import annotations

from collections.abc import Mapping

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.text import shown
from omniquant.models.adapter import FamilyAdapter
from omniquant.models.bloom import BloomAdapter
from omniquant.models.falcon import FalconAdapter
from omniquant.models.gemma import Gemma2Adapter, Gemma3Adapter
from omniquant.models.gpt2 import Gpt2Adapter
from omniquant.models.gpt_neox import GptNeoxAdapter
from omniquant.models.llama import LlamaAdapter
from omniquant.models.mistral import MistralAdapter
from omniquant.models.mixtral import MixtralAdapter
from omniquant.models.opt import OptAdapter
from omniquant.models.phi import Phi3Adapter, PhiAdapter
from omniquant.models.qwen import Qwen2Adapter, Qwen3Adapter
from omniquant.models.qwen_moe import Qwen2MoeAdapter, Qwen3MoeAdapter

ADAPTERS: tuple[FamilyAdapter, ...] = (
    LlamaAdapter(),
    MistralAdapter(),
    MixtralAdapter(),
    Gpt2Adapter(),
    GptNeoxAdapter(),
    OptAdapter(),
    Phi3Adapter(),
    PhiAdapter(),
    Qwen2Adapter(),
    Qwen3Adapter(),
    Qwen2MoeAdapter(),
    Qwen3MoeAdapter(),
    BloomAdapter(),
    FalconAdapter(),
    Gemma2Adapter(),
    Gemma3Adapter(),
)


def adapter_for_model_type(model_type: str, where: str) -> FamilyAdapter:
    """Return the adapter of a Hugging Face model_type.

    Raises
    ------
    UnsupportedCheckpointError
        Naming the type, the file it came from and the types that are supported.
    """
    for adapter in ADAPTERS:
        if model_type in adapter.classes:
            return adapter
    known = ", ".join(kind for adapter in ADAPTERS for kind in adapter.classes)
    raise UnsupportedCheckpointError(f"{where}: model_type is {shown(model_type)}, supported are {known}")


def adapter_for_gguf(architecture: str, where: str) -> FamilyAdapter:
    """Return the adapter of a GGUF general.architecture; raises as :func:`adapter_for_model_type`."""
    for adapter in ADAPTERS:
        if architecture in adapter.gguf_architectures:
            return adapter
    known = ", ".join(kind for adapter in ADAPTERS for kind in adapter.gguf_architectures)
    raise UnsupportedCheckpointError(
        f"{where}: general.architecture is {shown(architecture)}, supported are {known}"
    )


def adapter_of(config: Mapping[str, object]) -> FamilyAdapter:
    """Return the adapter of a model that was read already, by its configuration."""
    return adapter_for_model_type(str(config["model_type"]), "config.json")

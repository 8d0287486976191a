"""Models: a block spec, and an adapter a family that finds the tensors in a checkpoint."""

from omniquant.models.adapter import Architecture, FamilyAdapter
from omniquant.models.load import load_model
from omniquant.models.model import Model
from omniquant.models.registry import ADAPTERS
from omniquant.models.spec import BlockSpec
from omniquant.models.tensors import TensorRef

__all__ = ["ADAPTERS", "Architecture", "BlockSpec", "FamilyAdapter", "Model", "TensorRef", "load_model"]

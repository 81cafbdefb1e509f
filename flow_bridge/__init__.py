"""What both halves of twinflows share: architectures, weights across frameworks, files."""

from flow_bridge.architecture import architecture
from flow_bridge.errors import (
    ArchitectureError,
    CheckpointError,
    ConversionError,
    NonFiniteError,
    TwinflowsError,
    UnsupportedModel,
)
from flow_bridge.weights import jax_to_torch, torch_to_jax

__version__ = "0.2.0.dev0"

__all__ = [
    "ArchitectureError",
    "CheckpointError",
    "ConversionError",
    "NonFiniteError",
    "TwinflowsError",
    "UnsupportedModel",
    "__version__",
    "architecture",
    "jax_to_torch",
    "torch_to_jax",
]

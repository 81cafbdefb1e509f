"""What both halves of twinflows share: architectures, weights across frameworks, files, parity."""

from flow_bridge.architecture import architecture
from flow_bridge.errors import (
    ArchitectureError,
    CheckpointError,
    ConversionError,
    NonFiniteError,
    TwinflowsError,
)
from flow_bridge.parity import ParityReport, check_bijector, check_parity
from flow_bridge.weights import jax_to_torch, torch_to_jax

__all__ = [
    "ArchitectureError",
    "CheckpointError",
    "ConversionError",
    "NonFiniteError",
    "ParityReport",
    "TwinflowsError",
    "architecture",
    "check_bijector",
    "check_parity",
    "jax_to_torch",
    "torch_to_jax",
]

"""What stands on both halves: the parity check, the command line, tools for inference."""

from flow_bridge import __version__
from twinflows import inference
from twinflows.parity.compare import check_bijector, check_network, check_parity
from twinflows.parity.report import ParityReport

__all__ = [
    "ParityReport",
    "__version__",
    "check_bijector",
    "check_network",
    "check_parity",
    "inference",
]

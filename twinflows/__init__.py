"""What stands on both halves: the parity check, the command line, tools for inference."""

from twinflows.parity.compare import ParityReport, check_bijector, check_parity

__all__ = ["ParityReport", "check_bijector", "check_parity"]

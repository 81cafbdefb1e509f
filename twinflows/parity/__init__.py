"""The parity check, its report and its limits."""

"""The exceptions that both halves raise. Bad arguments raise plain ``ValueError`` or ``TypeError``."""

from typing import Any


class TwinflowsError(Exception):
    """Base class of the errors below."""


class ArchitectureError(TwinflowsError, ValueError):
    """An architecture is not plain data, or names an unknown type or argument."""


class ConversionError(TwinflowsError, ValueError):
    """An array is missing, unexpected, misshaped or mistyped; the message names it."""


class UnsupportedModel(ConversionError):
    """A model of another library has no exact counterpart; the message says what, and what would do."""


class CheckpointError(TwinflowsError, ValueError):
    """A checkpoint file is corrupt, hostile, or of another architecture."""


class NonFiniteError(TwinflowsError, ArithmeticError):
    """Training met a NaN or an infinity; the message names the step.

    In JAX, ``variables`` holds the best weights so far, or without validation data the last good ones
    (in PyTorch the flow itself does).
    """

    variables: Any = None


class ConvergenceError(TwinflowsError, ArithmeticError):
    """An iteration or a solver did not reach its tolerance; the message names it."""

"""The tolerance table: what "identical" means, in units of eps, each limit beside the noise measured.

Measured over the catalogue with random weights, torch 2.13.0 against jax 0.10.2 on CPU (float64 unless
said otherwise). float32 has the same limits in units of its own eps. A limit is changed here and
nowhere else.
"""

import math
from typing import NamedTuple


class Gate(NamedTuple):
    """A limit of ``base + per_layer * layers`` eps, and the largest noise seen."""

    base: float
    per_layer: float
    noise: str

    def limit(self, num_layers: int) -> float:
        """The limit in eps for a stack of ``num_layers``; one bijector alone gets ``base``."""
        return self.base + (self.per_layer * num_layers if num_layers > 1 else 0)

    def reason(self, num_layers: int) -> str:
        """The limit in words."""
        if self.per_layer and num_layers > 1:
            return f"{self.base:g} + {self.per_layer:g} for each of {num_layers} layers"
        return f"{self.base:g}"


GATES = {
    "outputs": Gate(64, 8, "1 to 16 eps from 1 to 64 couplings, row-normalised"),
    "log_det": Gate(64, 8, "28 eps at 16 couplings, relative to max(1, |log_det|)"),
    "gradients": Gate(4504, 0, "1e-15 relative L2 (5 eps) at 64 couplings; the limit is 1e-12"),
    "round_trip": Gate(512, 64, "7 to 64 eps: 8 times the limit of one direction"),
    "jacobian": Gate(4504, 0, "6e-15 (26 eps) at 16 couplings of dim 32; the limit is 1e-12"),
}

SMALL_GRADIENT = 1e-2
"""An array whose gradient is a smaller share of the whole is judged against this share of the whole:
where the truth is 0 (Sylvester, dim 1), sums over 256 rows were 7 eps of the whole apart."""

ORACLE_RATIO = 8
"""An ill-conditioned case passes if neither backend is this many times further from the oracle."""

MOVE = 64
"""By how many eps inputs and weights are moved, to see how far results go."""

MAX_CONDITIONING = 4.5e7
"""No conditioning raises a limit of float64 further, in eps: to 1e-8, where wrong formulas begin."""

MAX_FLOAT32 = 2.0**17
"""No float32 result may be further from float64, in eps: 1/64."""

REFINED_RATIO = 512
"""With finer steps a solver comes this much closer to the truth, at least; in theory by 4,096."""

DIFFERENCES = 1e-5
"""Relative error of a directional derivative against finite differences, 4e-9 at most where all is
smooth; piecewise linear activations have kinks, and of many units some cross one."""

DIFFERENCE_STEPS = (2.0**-24, 2.0**-28, 2.0**-32)
"""A smaller step where the one before it crosses a kink: of 32 fresh default models 5 cross one at the
first, by up to 7e-3 of the derivative, none at the second."""

TRAJECTORY = 1e-12
"""Relative L2 of all weights after 200 Adam steps, smooth conditioner, float64: 4.6e-15 measured."""

TRAJECTORY_STEPS = 200


class Limit(NamedTuple):
    """A limit in eps and why it is that."""

    value: float
    reason: str

    def raised(self, value: float, why: str) -> "Limit":
        """The limit, or a higher one where something that was measured asks for it."""
        if not math.isfinite(value) or value <= self.value:
            return self
        return Limit(value, f"raised from {self.value:.3g} {why}")


def gate(name: str, num_layers: int) -> Limit:
    """The row of the table, for a number of layers."""
    return Limit(GATES[name].limit(num_layers), GATES[name].reason(num_layers))


BY_CONDITIONING = "by the measured conditioning (rounding in float32, in its eps)"
BY_MOVING = f"by how far results move with {MOVE} eps in inputs and weights"
BY_SOLVER = "by the solver's measured error (the same with finer steps)"
BY_DETERMINANT = "by the condition number of the Jacobian"

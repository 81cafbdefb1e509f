"""What both halves say and share about differential equations."""

REFINEMENT = 8
"""How many times the steps of a solver that is judged against itself."""


STEP_SHARE = 1 / 4
"""The part of the tolerance that one adaptive step may leave; their sum is then within 10 tolerances."""

HOST_STEPS = (
    "ContinuousBijector with solver 'dopri5' chooses its steps on the host, which no transform of "
    "torch.func and no forward-mode derivative can follow: use torch.autograd, or solver 'rk4'."
)
"""What PyTorch's half says where its adaptive solver cannot run."""

NO_FORWARD_MODE = (
    "ContinuousBijector with adjoint=True has no forward-mode derivative (jvp, jacfwd, hessian): use "
    "jacrev, adjoint=False, or solver 'rk4'."
)
"""What JAX's half says where its adjoint equation cannot run."""


def refine(tolerance: float) -> float:
    """A tolerance that takes about so many times the steps of a method of fifth order."""
    return max(1e-4 * tolerance, min(tolerance, 1e-13))


def missing_solver(package: str, extra: str) -> str:
    """What a missing optional dependency says."""
    return (
        f"ContinuousBijector with solver 'dopri5' needs {package}: "
        f"pip install 'twinflows[{extra}]', or use solver 'rk4'."
    )


def solver_message(rtol: float, atol: float, max_steps: int) -> str:
    """What a solver that failed says."""
    return (
        f"the solver did not reach rtol={rtol:g}, atol={atol:g} within {max_steps} steps, or met a "
        "value that is not finite; loosen the tolerance, raise max_steps or use float64."
    )

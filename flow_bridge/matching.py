"""What the losses of continuous flows share: paths, times, and the matching of a minibatch."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flow_bridge import checks
from flow_bridge.optional import host

PATHS = ("rectified", "lipman", "schroedinger_bridge", "variance_preserving")
"""From data x at t = 0 to the base's z at t = 1, see ``FlowMatching``."""

TIMES = ("uniform", "logit_normal")
"""How ``FlowMatching`` draws t."""


def check_matching(owner: str, path: str, sigma: float, times: str) -> None:
    """Raise ``ValueError`` for options that are none, or make no sense together."""
    checks.one_of(owner, "path", path, PATHS)
    checks.one_of(owner, "times", times, TIMES)
    checks.non_negative_number(owner, sigma=sigma)
    if sigma and path == "variance_preserving":
        raise ValueError(f"{owner} has sigma with the other paths only, not {path!r}.")
    if path == "lipman" and sigma >= 1:
        raise ValueError(f"{owner} expects sigma below 1 with the path 'lipman', got {sigma!r}.")


def check_circle(owner: str, path: str, circular: Sequence[int]) -> None:
    """Raise ``ValueError`` for a path that shrinks angles."""
    if circular and path in ("lipman", "variance_preserving"):
        raise ValueError(
            f"{owner} has no path {path!r} for circular columns, which cannot shrink: take 'rectified'."
        )


def host_pairs(owner: str, x: Any, z: Any, context: Any) -> list[np.ndarray]:
    """x, z and the context if there is one, on the host; ``ValueError`` unless they are rows of pairs."""
    given = [x, z] if context is None else [x, z, context]
    arrays = [np.asarray(a.numpy(force=True) if hasattr(a, "detach") else a) for a in given]
    counts = {len(array) if array.ndim > 1 else 0 for array in arrays}
    if len(counts) > 1 or not min(counts):
        shapes = [array.shape for array in arrays]
        raise ValueError(
            f"{owner} expects x, z and a context of as many rows, got shapes {shapes}."
        )
    for array in arrays:
        if array.dtype.kind in "OSU":
            raise ValueError(f"{owner} expects x, z and a context of numbers, got {array.dtype}.")
        if not np.isfinite(array).all():
            raise ValueError(f"{owner} got a NaN or an infinity.")
    return arrays


def check_pairs(
    owner: str, shapes: tuple[tuple[int, ...], tuple[int, ...], int | None], flow: Any
) -> None:
    """Raise ``ValueError`` unless pairs are those of a flow: shapes of x and z, width of the context."""
    expected = tuple(flow.event_shape), tuple(flow.latent_shape), flow.context_dim or None
    if shapes != expected:
        raise ValueError(
            f"{owner} expects x, z and a context of widths {expected} for this flow, got {shapes}."
        )


def draws_its_own(owner: str) -> str:
    """What a loss says to data that it would not look at."""
    return f"{owner} holds its own x and z: fit(flow, None, loss=..., num_steps=...)."


def digest(*arrays: np.ndarray | None) -> str:
    """A hash of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def needs_continuous(owner: str, bijector: str) -> str:
    """What a loss of velocities says to a flow that has none."""
    return (
        f"{owner} fits the velocity of a ContinuousBijector, alone or last in a chain; this flow's "
        f"bijector is {bijector}."
    )


def needs_plain_space(owner: str, bijector: str, base: str) -> str:
    """What a loss says that compares data with noise where they are not in one space."""
    return (
        f"{owner} matches data with the noise of a StandardNormal through a ContinuousBijector alone; "
        f"this flow has the bijector {bijector} and the base {base}: standardise the data beforehand, or "
        f"take FlowMatching."
    )


def draw_times(generator: np.random.Generator, times: str, num_rows: int) -> np.ndarray:
    """t for every row, inside (0, 1) or at 0."""
    if times == "uniform":
        return generator.random(num_rows)
    return 1 / (1 + np.exp(-generator.standard_normal(num_rows)))


def matched(
    x: np.ndarray, noise: np.ndarray, keys: tuple[np.ndarray, ...], most: int
) -> np.ndarray:
    """For every row of x a row of noise, such that the sum of their squared distances is smallest.

    Rows exchange noise only with those of equal keys (contexts and weights), so that given them it stays
    independent of everything else; and only within blocks of at most ``most`` rows.
    """
    solve = host(
        "OptimalTransportFlowMatching", "scipy.optimize", "scipy", "inference"
    ).linear_sum_assignment
    order = np.arange(len(x))
    group = np.zeros(len(x), int)
    if keys:
        columns = np.concatenate([key.reshape(len(x), -1) for key in keys], 1)
        group = np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
    points, given = x.astype(float), noise.astype(float)
    for value in range(group.max(initial=-1) + 1):
        rows = np.flatnonzero(group == value)
        for part in np.split(rows, range(most, len(rows), most)):
            if len(part) > 1:
                order[part] = part[solve(-points[part] @ given[part].T)[1]]
    return noise[order]

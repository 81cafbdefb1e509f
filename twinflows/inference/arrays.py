"""Arrays of any framework as float64 ones of numpy, and the sentences for those that make no sense."""

import zlib
from typing import Any

import numpy as np

from flow_bridge import checks
from flow_bridge.arguments import plain as plain_argument


def numbers(owner: str, name: str, values: Any) -> np.ndarray:
    """An array, a tensor of either framework or nested lists of real numbers, in float64.

    Raises:
        TypeError: for what holds no real numbers.
        ValueError: for masked values, and for lists of unequal lengths.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        raise ValueError(f"{owner} got masked values in {name}.")
    if hasattr(values, "detach"):  # a tensor: numpy has no bfloat16
        values = values.detach().cpu()
        values = (values.double() if values.dtype.is_floating_point else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{owner} expects the lists of {name} to be of one length.") from error
    if array.dtype.kind not in "iuf" and array.dtype.name not in checks.FLOAT_DTYPES:
        raise TypeError(f"{owner} expects {name} as real numbers, got {array.dtype.name}.")
    return array.astype(np.float64)


def finite(owner: str, name: str, values: Any) -> np.ndarray:
    """``numbers`` without NaN and infinities."""
    array = numbers(owner, name, values)
    _refuse(owner, name, ~np.isfinite(array), "a NaN or an infinity")
    return array


def rows(owner: str, name: str, values: Any, at_least: int = 2) -> np.ndarray:
    """``finite``, with as many rows (or draws) as it takes."""
    return _enough(owner, name, finite(owner, name, values), at_least)


def log_weights(owner: str, name: str, values: Any, at_least: int = 2) -> np.ndarray:
    """Log-weights ``(draws, ...)``: -inf is a weight of 0, but not all may be."""
    array = _enough(owner, name, numbers(owner, name, values), at_least)
    _refuse(owner, name, np.isnan(array), "a NaN")
    _refuse(owner, name, array == np.inf, "+inf")
    if np.isneginf(array).all(0).any():
        raise ValueError(f"{owner} got no weight above 0: all of {name} is -inf.")
    return array


def log_densities(owner: str, name: str, values: Any, at_least: int = 1) -> np.ndarray:
    """Log-densities, of which any may be -inf."""
    array = _enough(owner, name, numbers(owner, name, values), at_least)
    _refuse(owner, name, np.isnan(array), "a NaN")
    _refuse(owner, name, array == np.inf, "+inf")
    return array


def same_shape(owner: str, first: str, a: np.ndarray, second: str, b: np.ndarray) -> None:
    """Raise ``ValueError`` unless two arrays are of one shape."""
    if a.shape != b.shape:
        raise ValueError(
            f"{owner} expects {first} and {second} of one shape, got {a.shape} and {b.shape}."
        )


def draws_of(owner: str, of: str, given: np.ndarray, name: str, draws: np.ndarray) -> None:
    """Raise ``ValueError`` unless ``draws`` holds several of what ``given`` holds one each."""
    if draws.shape[1:] != given.shape:
        raise ValueError(
            f"{owner} expects {name} of shape (draws, {', '.join(map(str, given.shape))}) for {of} of "
            f"shape {given.shape}, got {draws.shape}."
        )


def matrix(owner: str, name: str, array: np.ndarray) -> np.ndarray:
    """``(rows, columns)``; of one axis it becomes one column."""
    if array.ndim not in (1, 2):
        raise ValueError(f"{owner} expects {name} of shape (rows, columns), got {array.shape}.")
    return array[:, None] if array.ndim == 1 else array


def fraction(owner: str, **values: float) -> None:
    """Raise ``ValueError`` unless every value lies between 0 and 1, the ends excluded."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{owner} expects {name} between 0 and 1, got {value!r}.")


def count(owner: str, name: str, value: Any) -> int:
    """A positive integer, numpy's too."""
    value = plain_argument(owner, name, int, value)
    checks.positive_int(owner, **{name: value})
    return value


def generator(owner: str, seed: Any) -> np.random.Generator:
    """A source of randomness of a function's own: ``default_rng(seed)`` may have made the very data."""
    if isinstance(seed, np.random.Generator):
        return seed
    seed = plain_argument(owner, "seed", int, seed)
    checks.non_negative_int(owner, seed=seed)
    return np.random.default_rng([zlib.crc32(owner.encode()), seed])


def plain(array: Any) -> Any:
    """A number where an array has no axis."""
    return np.asarray(array).item() if np.ndim(array) == 0 else array


def log_mean_exp(array: np.ndarray) -> np.ndarray:
    """log mean exp along the first axis; every column has an entry above -inf."""
    top = array.max(0)
    return top + np.log(np.exp(array - top).mean(0))


def _enough(owner: str, name: str, array: np.ndarray, at_least: int) -> np.ndarray:
    if array.ndim == 0 or len(array) < at_least:
        got = "a number" if array.ndim == 0 else len(array)
        raise ValueError(f"{owner} expects at least {at_least} rows in {name}, got {got}.")
    return array


def _refuse(owner: str, name: str, bad: np.ndarray, what: str) -> None:
    if bad.any():
        at = np.argwhere(bad)[0]
        where = f" in row {at[0]}" if len(at) else ""
        raise ValueError(f"{owner} got {what}{where} of {name}.")

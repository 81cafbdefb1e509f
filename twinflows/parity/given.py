"""What is judged: the rows that were given, and where two given models differ."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Shape = tuple[int | None, ...]


def rows(owner: str, model: Any, x: Any, context: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """x as ``(rows, *event_shape)`` and the context as ``(rows, context_dim)``, float32 on the host.

    Raises:
        ValueError: for a wrong shape, no rows, or a value that is not finite.
        TypeError: for what holds no numbers.
    """
    event_shape: Shape = model.event_shape
    array = _numbers(owner, "x", x)
    batch = array.shape[: array.ndim - len(event_shape)]
    event = array.shape[len(batch) :]
    fits = array.ndim >= len(event_shape) and all(
        want in (None, size) for want, size in zip(event_shape, event, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in event_shape)
        raise ValueError(f"{owner} expects x of shape (*batch, {wanted}), got {array.shape}.")
    if not array.size:
        raise ValueError(f"{owner} expects at least one row, got x of shape {array.shape}.")
    array = array.reshape(-1, *event)
    width = model.context_dim
    if context is None:
        if width:
            raise ValueError(f"{owner} expects a context of shape (*batch, {width}).")
        return array, None
    if not width:
        raise ValueError(f"{owner} got a context, and the model takes none.")
    given = _numbers(owner, "context", context)
    try:
        given = np.broadcast_to(given, (*batch, width))
    except ValueError:
        raise ValueError(
            f"{owner} expects a context of shape {(*batch, width)}, got {given.shape}."
        ) from None
    return array, np.ascontiguousarray(given.reshape(-1, width))


def _numbers(owner: str, name: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    array = np.asarray(values)
    if array.dtype == object or not (
        np.issubdtype(array.dtype, np.number) or array.dtype.name == "bfloat16"
    ):
        raise TypeError(f"{owner} expects {name} of numbers, got {array.dtype}.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{owner} expects {name} to be finite in float32.")
    return array


def describe_rows(x: np.ndarray, context: np.ndarray | None, source: str) -> dict[str, str]:
    """How many rows, in which range, from where, and their SHA-256."""
    shape = " x ".join(str(size) for size in x.shape[1:])
    described = {
        "inputs": f"{len(x)} rows of {shape}, from {x.min():.6g} to {x.max():.6g}, {source}",
        "sha256 of the inputs": hashlib.sha256(x.tobytes()).hexdigest(),
    }
    if context is not None:
        described["context"] = (
            f"{context.shape[1]} columns, from {context.min():.6g} to {context.max():.6g}"
        )
    return described


def differences(first: Any, second: Any, where: str = "") -> Iterator[str]:
    """The places at which two architectures differ, each in words."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.get("type") != second.get("type"):
            yield f"{where or 'the type'}: {first.get('type')} against {second.get('type')}"
            return
        for key in [*first, *(k for k in second if k not in first)]:
            place = f"{where}.{key}" if where else key
            if key not in first or key not in second:
                yield f"{place}: only the {'first' if key in first else 'second'} has it"
            else:
                yield from differences(first[key], second[key], place)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for i, pair in enumerate(zip(first, second, strict=True)):
            yield from differences(*pair, f"{where}[{i}]")
    elif isinstance(first, list) and isinstance(second, list) and not _plain(first, second):
        yield f"{where}: {len(first)} against {len(second)} of them"
    elif first != second or isinstance(first, bool) != isinstance(second, bool):
        yield f"{where}: {first!r} against {second!r}"


def _plain(*lists: list[Any]) -> bool:
    return not any(isinstance(item, dict | list) for items in lists for item in items)


def weight_differences(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> list[str]:
    """The names that one has alone, other shapes and dtypes, and other values."""
    found = [f"{name}: only the first has it" for name in first if name not in second]
    found += [f"{name}: only the second has it" for name in second if name not in first]
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if a.shape != b.shape:
            found.append(f"{name}: shape {a.shape} against {b.shape}")
        elif not np.array_equal(a, b, equal_nan=True):
            gap = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
            found.append(f"{name}: up to {gap:.3g} apart")
    return sorted(found)


def summary(what: str, found: list[str], at_most: int = 3) -> list[str]:
    """One sentence on a list of differences, none where it is empty."""
    if not found:
        return []
    more = f", and at {len(found) - at_most} more places" if len(found) > at_most else ""
    return [f"{what} differ at {'; '.join(found[:at_most])}{more}."]

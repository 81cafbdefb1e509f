"""Kinds of arrays and tables as data: right, or refused with the same sentence in both halves."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import torch_flows
from flow_bridge import sources
from parity_tests.catalogue import Case, arch, flow
from parity_tests.test_training import HALVES, QUIET, data, fit_half

AFFINE = Case("affine", flow(arch("Affine", dim=2), arch("StandardNormal", dim=2)))
CONDITIONAL = Case("conditional", flow(
    arch("Planar", dim=2, context_dim=1), arch("StandardNormal", dim=2),
))  # fmt: skip
X = data(24)
ONE: dict[str, Any] = {"num_epochs": 1, "batch_size": 8}


def masked(x: np.ndarray, *rows: int) -> np.ma.MaskedArray:
    result = np.ma.MaskedArray(x.copy(), mask=False)
    for row in rows:
        result.data[row] = -999.0
        result[row] = np.ma.masked
    return result


def table(x: np.ndarray) -> Any:
    """What pandas, polars and others have in common; it iterates over its columns."""
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return SimpleNamespace(shape=x.shape, __iter__=columns.__iter__, to_numpy=lambda: x)


def read_only(x: np.ndarray) -> np.ndarray:
    return np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)


def memory_map(x: np.ndarray, folder: Any) -> np.ndarray:
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode="r")


@HALVES
@pytest.mark.parametrize("kind", [
    lambda x, folder: x.astype(">f8"),
    lambda x, folder: x[::-1].copy()[::-1],
    lambda x, folder: np.asfortranarray(x),
    lambda x, folder: x.tolist(),
    lambda x, folder: table(x),
    lambda x, folder: masked(x),
    lambda x, folder: read_only(x),
    lambda x, folder: memory_map(x.astype(">f8"), folder),
], ids=["endian", "strides", "Fortran", "lists", "table", "unmasked", "read-only", "map"])  # fmt: skip
def test_the_same_rows_in_another_guise(half: str, kind: Callable[..., Any], tmp_path: Any) -> None:
    weights, history = fit_half(half, AFFINE, X, **ONE)
    other, twin = fit_half(half, AFFINE, kind(X, tmp_path), **ONE)
    assert history == twin
    for name, array in weights.items():
        np.testing.assert_array_equal(array, other[name])


@HALVES
def test_a_context_may_be_a_table(half: str) -> None:
    context = X[:, :1].copy()
    expected = fit_half(half, CONDITIONAL, X, context=context, **ONE)[1]
    assert fit_half(half, CONDITIONAL, X, context=context.tolist(), **ONE)[1] == expected
    given = SimpleNamespace(to_numpy=lambda: context)
    assert fit_half(half, CONDITIONAL, table(X), context=given, **ONE)[1] == expected


@HALVES
@pytest.mark.parametrize(("source", "options", "message"), [
    (masked(X, 3, 5), {}, "fit got a masked value in row 3 of data."),
    ([X, masked(X, 4)], {"validation": 0}, "fit got a masked value in row 4 of batch 1 of data."),
    (X, {"validation": masked(X, 2)}, "fit got a masked value in row 2 of validation."),
    (X.astype(object), {}, "Flow expects data in floating point, got object."),
    (np.zeros(4, [("a", "f8"), ("b", "f8")]), {}, "Flow expects data in floating point, got void128."),
    (X.astype(complex), {}, "Flow expects data in floating point, got complex128."),
    (X.astype(np.float32), {}, "Flow has float64 weights but data is float32; convert one of the two, as "
     'with .astype("float64").'),
    ([[1.0, 2.0], [3.0]], {}, "fit expects the lists of data to be of one length."),
    (X[:, 0], {}, "Flow expects data of shape (*batch, 2), got (24,)."),
    (X[0], {}, "fit expects data with one axis of rows, got shape (2,)."),
    (X.reshape(4, 6, 2), {}, "fit expects data with one axis of rows, got shape (4, 6, 2)."),
    (X[:0], {}, "fit got no rows of data."),
    (X, {"validation": None}, "fit expects validation as an array, an iterable of batches or a function "
     "from the epoch to one, got NoneType."),
])  # fmt: skip
def test_refused(half: str, source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as info:
        fit_half(half, AFFINE, source, **ONE | options)
    assert str(info.value) == message


@HALVES
def test_a_masked_context(half: str) -> None:
    with pytest.raises(ValueError, match=r"^fit got a masked value in row 1 of data's context.$"):
        fit_half(half, CONDITIONAL, X, context=masked(X[:, :1], 1), **ONE)


def test_torch_tensors_with_a_past(tmp_path: Any) -> None:
    """With a graph, without gradients, of inference mode; compiled flows."""
    x = torch.from_numpy(X)
    scale = torch.ones(2, dtype=x.dtype, requires_grad=True)
    expected = torch_flows.fit(AFFINE.torch_model(), x, **QUIET | ONE)
    assert torch_flows.fit(AFFINE.torch_model(), x * scale, **QUIET | ONE) == expected
    assert scale.grad is None
    with torch.no_grad():
        assert torch_flows.fit(AFFINE.torch_model(), x, **QUIET | ONE) == expected
    model = AFFINE.torch_model()
    with torch.inference_mode():
        assert torch_flows.fit(model, x * 1, **QUIET | ONE) == expected
        made_here = AFFINE.torch_model()
    with pytest.raises(
        ValueError, match=r"^fit cannot train weights that were made in torch.inference"
    ):
        torch_flows.fit(made_here, x, **QUIET | ONE)
    model = AFFINE.torch_model()
    compiled = torch.compile(model, backend="eager")
    assert torch_flows.fit(compiled, x, **QUIET | ONE) == expected
    assert not torch.equal(model.bijector.shift, AFFINE.torch_model().bijector.shift)
    torch_flows.save(compiled, path := tmp_path / "m.safetensors")
    assert torch.equal(torch_flows.load(path).bijector.shift, model.bijector.shift)


def test_what_is_an_array() -> None:
    assert sources.is_array([[0.5]])
    assert not sources.is_array([X, X])
    assert not sources.is_array([(X, X)])
    assert not sources.is_array([])

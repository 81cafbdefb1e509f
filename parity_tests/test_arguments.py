"""Every argument of every constructor, given values of other kinds: taken alike in both halves, as
what they hold, or refused with one sentence."""

import inspect
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.architecture import Architecture, architecture, to_json
from flow_bridge.networks import REGISTERED
from jax_flows.registry import registry as jax_registry
from parity_tests.catalogue import CASES, arch
from torch_flows.registry import registry as torch_registry

OTHERS: list[Any] = [
    0, 1, -1, 2.5, math.nan, math.inf, -math.inf, True, None, "even", "", (), [1, 0], (2.5,), [None], {},
    np.int64(2), np.float32(0.5), np.float64(math.nan), np.bool_(True), np.array(3), np.array([1, 0]),
    np.array([1.5, 0.5]), np.array([True, False]), np.array([[1, 0]]), np.str_("odd"), range(2),
]  # fmt: skip


SHIFT = arch("ShiftMap")
GRID = [
    arch("Elementwise", shape=2, map=arch("AffineMap")),
    arch("Coupling", dim=2, map=SHIFT),
    arch("MaskedAutoregressive", dim=2, map=arch("SplineMap")),
]


def smallest() -> dict[str, Architecture]:
    """One architecture for each type, the shortest of the catalogue."""
    found: dict[str, Architecture] = {}

    def visit(value: Any) -> None:
        if isinstance(value, dict) and "type" in value:
            name = value["type"]
            if name not in found or len(str(value)) < len(str(found[name])):
                found[name] = value
            for part in value.values():
                visit(part)
        elif isinstance(value, list | tuple):
            for part in value:
                visit(part)

    for row in (*GRID, *(case.architecture for case in CASES)):
        visit(row)
    return found


# what Python and numpy say where nobody checks
RAW = re.compile(
    "iterable|operand|truth value|attribute|subscript|not supported between|len\\(\\)|JSON"
)

SMALLEST = smallest()
TYPES = sorted(
    name
    for name in SMALLEST.keys() & torch_registry.types.keys() & jax_registry.types.keys()
    if torch_registry.types[name] not in REGISTERED  # networks are options of bijectors
)


def build(half: Any, name: str, changes: dict[str, Any]) -> Any:
    cls = half.registry.registry.types[name]
    plain = {key: value for key, value in SMALLEST[name].items() if key != "type"}
    built = {key: part(half, value) for key, value in plain.items()}
    return cls(**(built | changes))


def part(half: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return half.build(value)
    if isinstance(value, list | tuple):
        return [part(half, entry) for entry in value]
    return value


def outcome(half: Any, name: str, changes: dict[str, Any]) -> str:
    try:
        return to_json(architecture(build(half, name, changes)))
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", TYPES)
def test_other_arguments(name: str) -> None:
    with torch.device("meta"):
        for parameter in inspect.signature(torch_registry.types[name]).parameters:
            for value in OTHERS:
                in_torch = outcome(torch_flows, name, {parameter: value})
                assert in_torch == outcome(jax_flows, name, {parameter: value}), (parameter, value)
                if hasattr(value, "tolist") and in_torch.startswith("{"):
                    assert in_torch == outcome(torch_flows, name, {parameter: value.tolist()})
                assert not RAW.search(in_torch), in_torch


def test_numpy_is_taken_as_what_it_holds() -> None:
    for half in (torch_flows, jax_flows):
        flow = half.NICE(np.int64(3), np.array([4, 4]), num_layers=np.int8(1))
        assert flow.hidden_dims == (4, 4)
        assert type(flow.dim) is int
        coupling = half.AffineCoupling(3, (4,), mask=np.array([True, False, True]))
        assert coupling.mask == (1, 0, 1)
        assert half.Permutation(np.array([1, 0])).permutation == (1, 0)
        assert type(half.BatchNorm(2, eps=np.float32(0.5)).eps) is float
    assert jax_flows.NICE(np.int64(3), [4]) == jax_flows.NICE(3, (4,))

"""What importers made of models of other libraries, without these libraries: golden files."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

import jax_flows
import torch_flows
from flow_bridge import ConversionError, torch_to_jax
from flow_bridge.importers import Imported, import_state, parts
from flow_bridge.importers.comparison import errors
from parity_tests.peers import GOLDEN, LIBRARIES

FILES = sorted(GOLDEN.glob("*.npz"), key=lambda path: path.name)
IN_JAX = (
    "distrax_spline",
    "flowjax_masked_spline",
    "freia_all_in_one",
    "nflows_rq_coupling_context",
    "nflows_linear",
    "nflows_normalization",
    "numpyro_iaf",
    "normflows_maf",
    "normflows_planar",
    "pyro_conditional",
    "sbi_maf_embedded",
    "sbi_nsf_one_dimension",
    "zuko_maf_adjacency",
    "zuko_maf_residual",
    "zuko_naf",
    "zuko_nice_spline",
)
"""What takes a second to compile: one of each kind; the parity suite compares the halves."""


def test_every_peer_has_a_golden_file() -> None:
    assert set(LIBRARIES) == {path.stem.split("_")[0] for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_file(path) -> None:
    """Both halves compute what the peer computed."""
    with np.load(path) as file:
        contents = {name: file[name] for name in file.files}
    architecture = json.loads(str(contents["architecture"]))
    arrays = safetensors.numpy.load(contents["arrays"].tobytes())
    if "state" in contents:  # the peer's own arrays
        imported = import_state(**json.loads(str(contents["state"])), state=arrays)
        assert imported.architecture == architecture
        arrays = imported.arrays
    x, context = contents["x"], contents.get("context")
    backwards = bool(contents.get("inverse"))  # the peer has only the way from latent to data

    flow = torch_flows.build(architecture).double()
    flow.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    given = None if context is None else torch.from_numpy(context)
    with torch.no_grad():
        step = flow.inverse if backwards else flow.forward
        results = {"torch": step(torch.from_numpy(x), given)}
    if path.stem in IN_JAX:
        twin = jax_flows.build(architecture)
        variables = torch_to_jax(arrays, twin.shapes())
        step = twin.inverse if backwards else twin.forward
        results["jax"] = jax.jit(step)(variables, x, context)
    for half, found in results.items():
        pair = contents["z"], contents["log_det"]
        apart = errors(tuple(np.asarray(value) for value in found), pair).max(1)
        assert (apart <= contents["limits"]).all(), (half, apart, contents["limits"])


@pytest.mark.parametrize("half", [torch_flows, jax_flows])
def test_a_difference_is_found_and_named(half) -> None:
    """Of a model of two layers, the second of which may be another one."""
    scale = np.array([2.0, 0.5])

    def imported(slope: float) -> Imported:
        def first(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            return x[:, ::-1], np.zeros(len(x))

        def second(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            return slope * x / scale, np.full(len(x), 2 * np.log(slope))

        def both(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            return second(first(x, None)[0], None)

        layers = [
            parts.Layer("turn", [parts.permutation([1, 0])], first),
            parts.Layer("stretch", [parts.standardize(0 * scale, scale, "a test")], second),
        ]
        reading = parts.Reading(layers, parts.part("StandardNormal", dim=2), both)
        flow = parts.flow(reading)
        return Imported(flow.architecture, flow.arrays, "a test", ("a note",), "float32", reading)

    with pytest.warns(UserWarning, match="a test: a note"):
        half.import_flow(imported(1.0))
    with pytest.raises(ConversionError) as error:
        half.import_flow(imported(1 + 1e-9))
    assert "the import of a test differs from it: z of a row is" in str(error.value)
    assert str(error.value).endswith("The first layer that differs is stretch.")
    with pytest.warns(UserWarning, match="a test: a note"):
        half.import_flow(imported(1 + 1e-9), check=False)

"""What importers made of models of other libraries, without these libraries: golden files."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

import jax_flows
import torch_flows
from flow_bridge import torch_to_jax
from flow_bridge.importers import import_state
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

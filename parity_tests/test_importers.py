"""What importers made of models of other libraries, without these libraries: golden files."""

import json

import jax
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge import torch_to_jax
from parity_tests.peers import GOLDEN

FILES = sorted(GOLDEN.glob("*.npz"), key=lambda path: path.name)
EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_file(path) -> None:
    """Both halves compute what the peer computed."""
    with np.load(path) as file:
        contents = {name: file[name] for name in file.files}
    architecture = json.loads(str(contents["architecture"]))
    arrays = {k.removeprefix("array."): v for k, v in contents.items() if k.startswith("array.")}
    x, context = contents["x"], contents.get("context")
    backwards = bool(contents.get("inverse"))  # the peer has only the way from latent to data

    flow = torch_flows.build(architecture).double()
    flow.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    given = None if context is None else torch.from_numpy(context)
    with torch.no_grad():
        step = flow.inverse if backwards else flow.forward
        results = {"torch": step(torch.from_numpy(x), given)}
    with jax.enable_x64(True):
        twin = jax_flows.build(architecture)
        variables = torch_to_jax(arrays, twin.shapes())
        step = twin.inverse if backwards else twin.forward
        results["jax"] = jax.jit(step)(variables, x, context)
    for half, found in results.items():
        for name, value in zip(("z", "log_det"), found, strict=True):
            expected = contents[name]
            error = abs(np.asarray(value) - expected) / np.maximum(1, abs(expected))
            assert error.max() < 500 * EPS, (half, name)

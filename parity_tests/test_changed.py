"""Modules that were changed after they were built: saved as what they are, or refused."""

import io
from typing import Any

import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge import architecture
from flow_bridge.errors import ArchitectureError


def nice() -> Any:
    return torch_flows.NICE(2, hidden_dims=(4,), num_layers=2)


CHANGES: dict[str, tuple[Any, Any]] = {
    "base": (nice, lambda f: setattr(f, "base", torch_flows.Uniform(2, -9.0, 9.0))),
    "base with weights": (nice, lambda f: setattr(f, "base", torch_flows.GaussianMixture(2, 2))),
    "layer appended": (nice, lambda f: f.bijector.bijectors.append(torch_flows.LeakyReLU())),
    "layers swapped": (
        nice,
        lambda f: f.bijector.bijectors.insert(0, f.bijector.bijectors.pop(1)),
    ),
    "BatchNorm.eps": (
        lambda: torch_flows.RealNVP(2, hidden_dims=(4, 4), num_layers=2),
        lambda f: setattr(f.bijector.bijectors[1], "eps", 0.5),
    ),
    "tail_bound": (
        lambda: torch_flows.NeuralSplineFlow(2, hidden_dims=(4,), num_layers=1),
        lambda f: setattr(f.bijector.bijectors[1], "map", torch_flows.SplineMap(8, -50.0, 50.0)),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_saved_as_what_it_is(name: str) -> None:
    make, change = CHANGES[name]
    torch.manual_seed(0)
    flow, x = make().eval(), torch.full((3, 2), 0.3)
    before = flow.log_prob(x).detach()
    change(flow)
    after = flow.log_prob(x).detach()
    assert not torch.allclose(before, after)
    file = io.BytesIO()
    torch_flows.save(flow, file)
    again = torch_flows.load(file.getvalue())
    assert torch.equal(again.log_prob(x), after)
    twin, variables = jax_flows.load(file.getvalue())
    np.testing.assert_allclose(twin.log_prob(variables, x.numpy()), after, rtol=1e-5)


def swapped_network() -> Any:
    bijector = torch_flows.AffineCoupling(4, separate_networks=False)
    bijector.network = torch.nn.Sequential(torch.nn.Linear(2, 4))
    return bijector


def other_width() -> Any:
    flow = nice()
    network = torch_flows.Network(torch_flows.MLP, hidden_dims=(5,))
    flow.bijector.bijectors[0].conditioner = network
    return flow


def wider_layer() -> Any:
    bijector = torch_flows.LULinear(2)
    bijector.lu = torch.nn.Parameter(torch.zeros(3, 3))
    return bijector


@pytest.mark.parametrize("make", [swapped_network, other_width, wider_layer])
def test_what_no_arguments_build_is_refused(make: Any, tmp_path: Any) -> None:
    module = make()
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    for act in (lambda: torch_flows.save(module, path), lambda: architecture(module)):
        with pytest.raises(ArchitectureError, match="it was changed after it was built"):
            act()
    assert path.read_bytes() == b"old"
    if isinstance(module, torch_flows.Flow):
        with pytest.raises(ArchitectureError, match="it was changed after it was built"):
            torch_flows.fit(module, torch.randn(8, 2), num_epochs=1, progress=False)


def test_a_part_that_was_put_in_twice_is_refused(tmp_path: Any) -> None:
    part = torch_flows.Planar(2)
    for flow in (
        torch_flows.Flow(torch_flows.Chain([part]), torch_flows.StandardNormal(2)),
        nice(),
    ):
        parts = flow.bijector.bijectors
        parts.append(parts[0])
        for act in (
            lambda flow=flow: torch_flows.save(flow, tmp_path / "m.safetensors"),
            lambda flow=flow: torch_flows.fit(flow, torch.zeros(8, 2), progress=False),
        ):
            with pytest.raises(ArchitectureError, match=r"as 'bijector\.bijectors\.0' and as"):
                act()


def test_a_counter_of_the_users_own_is_no_change() -> None:
    flow = nice()
    flow.calls = 3
    assert architecture(flow)["type"] == "NICE"

"""The scaling of data and context, as part of a flow and of its file."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge import architecture
from flow_bridge.standardization import location_and_scale
from flow_bridge.weights import jax_to_torch
from torch_flows.checkpoint import to_numpy

pytestmark = pytest.mark.usefixtures("quick_jax")
SMALL = {"dim": 2, "hidden_dims": (4,), "num_layers": 1, "context_dim": 2}


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    context = generator.normal(size=(300, 2)) * (3e-4, 10) + (0.1, 2000)
    return generator.normal(size=(300, 2)) * (2, 3e4) + (50, -7e5), context


def test_standardized_gives_densities_of_the_data(data, tmp_path) -> None:
    x, context = data
    inner = torch_flows.MAF(**SMALL).double()
    flow = torch_flows.standardized(inner, x, context)
    given = [torch.from_numpy(a) for a in data]
    scaled = [torch.from_numpy((a - a.mean(0)) / a.std(0)) for a in data]
    expected = inner.log_prob(*scaled) - np.log(x.std(0)).sum()
    torch.testing.assert_close(flow.log_prob(*given), expected, rtol=1e-11, atol=0)
    back = flow.inverse(*[flow.forward(*given)[0], given[1]])[0]
    torch.testing.assert_close(back, given[0], rtol=1e-12, atol=0)
    names = {name for name, _ in flow.named_parameters()}
    assert not any(name.endswith(("loc", "scale")) for name in names)
    torch_flows.save(flow, path := tmp_path / "flow")
    assert torch.equal(torch_flows.load(path).log_prob(*given), flow.log_prob(*given))


@pytest.mark.parametrize("robust", [False, True])
def test_the_halves_standardize_alike(data, robust, tmp_path) -> None:
    inner = torch_flows.MAF(**SMALL)
    flow = torch_flows.standardized(inner, *data, robust)
    torch_flows.save(inner, tmp_path / "inner")
    jax_flow, variables = jax_flows.standardized(*jax_flows.load(tmp_path / "inner"), *data, robust)
    assert architecture(jax_flow) == architecture(flow)
    arrays = jax_to_torch(variables)
    assert arrays.keys() == flow.state_dict().keys()
    for name, tensor in flow.state_dict().items():
        np.testing.assert_array_equal(arrays[name], to_numpy(tensor))
    jax_flows.save(jax_flow, variables, tmp_path / "whole")
    again = torch_flows.load(tmp_path / "whole")
    np.testing.assert_array_equal(again.bijector.bijectors[0].loc, flow.bijector.bijectors[0].loc)


def scaling_of_context(
    half: Any, x: np.ndarray, context: np.ndarray, net: Any, robust: bool
) -> Any:
    """Location and scale of the context in a flow whose context goes to ``net`` first."""
    flow = half.Flow(half.MAF(**SMALL).bijector, half.StandardNormal(2), net(half))
    if half is torch_flows:
        flow = half.standardized(flow, x, context, robust)
        return [a.numpy() for a in flow.context_net[0].buffers()]
    variables = half.standardized(flow, flow.init(jax.random.key(0)), x, context, robust)[1]
    fixed = variables["batch_stats"]["context_net_0"]
    return [np.array(fixed[name]) for name in ("loc", "scale")]


@pytest.mark.parametrize("half", [torch_flows, jax_flows])
@pytest.mark.parametrize("robust", [False, True])
def test_a_set_keeps_its_order_out_of_it(half, robust, data) -> None:
    """One scale for all elements that count; one for each place would make their order matter."""
    generator = np.random.default_rng(0)
    elements = generator.normal((7, -30), (2, 1e3), (300, 4, 2)).astype(np.float32)
    flags = generator.random((300, 4, 1)) < 0.8
    elements[~flags[..., 0]] = 1e6
    context = np.concatenate([flags, elements], -1).astype(np.float32).reshape(300, 12)
    found = scaling_of_context(
        half, data[0], context, lambda h: h.DeepSet(12, 2, 3, hidden_dims=(4,), padded=True), robust
    )
    loc, scale = location_and_scale(elements[flags[..., 0]], "float32", robust=robust)
    np.testing.assert_allclose(found[0], np.tile([0, *loc], 4), rtol=1e-6)
    np.testing.assert_allclose(found[1], np.tile([1, *scale], 4), rtol=1e-6)


@pytest.mark.parametrize("half", [torch_flows, jax_flows])
def test_an_image_has_one_scale_per_channel(half, data) -> None:
    images = np.random.default_rng(0).normal(5, 3, (300, 2, 2, 4)).astype(np.float32)
    images[:, 1] *= 100
    images[:, 0, 0, 0] = 0  # a pixel that is always dark
    found = scaling_of_context(
        half,
        data[0],
        images.reshape(300, 16),
        lambda h: h.ConvEmbedding(16, 2, (2, 2, 4), (3,)),
        False,
    )
    expected = location_and_scale(images, "float32")
    np.testing.assert_allclose(found, np.repeat(expected, 8, 1), rtol=1e-6)


def test_training_leaves_the_scaling_alone(data) -> None:
    x, context = (a.astype(np.float32) for a in data)
    options = {"context": context, "num_epochs": 1, "batch_size": 150, "progress": False}
    flow = torch_flows.standardized(torch_flows.MAF(**SMALL), x, context)
    before = {name: b.clone() for name, b in flow.named_buffers()}
    torch_flows.fit(flow, x, **options)
    for part in ("bijector.bijectors.0", "context_net.0"):
        assert {f"{part}.loc", f"{part}.scale"} <= before.keys()
    for name, buffer in flow.named_buffers():
        assert torch.equal(buffer, before[name])
    jax_flow = jax_flows.MAF(**SMALL)
    jax_flow, variables = jax_flows.standardized(
        jax_flow, jax_flow.init(jax.random.key(0), "float32"), x, context
    )
    trained, _ = jax_flows.fit(jax_flow, variables, x, **options)
    jax.tree.map(np.testing.assert_array_equal, trained["batch_stats"], variables["batch_stats"])


def test_images_get_one_scale_per_channel() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2, 4, 4)) * [[[3.0]], [[0.2]]] + 5
    base = torch_flows.Glow((2, 4, 4), num_levels=1, num_steps=1, hidden_channels=2)
    flow = torch_flows.standardized(base, x)
    z, log_det = flow.bijector.bijectors[0].forward(torch.tensor(x, dtype=torch.float32))
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(2))
    expected = -16 * np.log(x.std((0, 2, 3))).sum()
    torch.testing.assert_close(log_det, torch.full((20,), expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("column", "dtype", "reason"),
    [
        ([2.0, 2, 2], "float32", "column 'b' of the data is constant: it has no density."),
        ([0.1, 0.1, 0.1], "float64", "column 'b' of the data is constant: it has no density."),
        ([1e8, 1e8, 1e8 + 1], "float32", "too little for float32: subtract a constant"),
        ([1e200, 2e200, 3e200], "float32", "values of 3e+200, too large for float32"),
        ([1e-44, 2e-44, 3e-44], "float32", "too little for float32"),
        ([0, np.nan, 1], "float32", "column 'b' of the data holds a NaN or an infinity."),
    ],
)
def test_columns_that_cannot_be_scaled(column, dtype, reason) -> None:
    x = np.column_stack([[1.0, 2, 3], column])
    with pytest.raises(ValueError, match=r"column 'b' of the data") as error:
        location_and_scale(x, dtype, names=["a", "b"])
    assert reason in str(error.value)


def test_median_and_interquartile_range() -> None:
    x = np.random.default_rng(0).standard_normal((10_000, 3)) * (1, 5, 1) + (0, 7, 0)
    x[:500, 1] = 1e9
    x[:6000, 2] = 0  # half of it one value: mean and standard deviation
    loc, scale = location_and_scale(x, "float64", robust=True)
    np.testing.assert_allclose(loc[:2], [0, 7], atol=0.4)
    np.testing.assert_allclose(scale[:2], [1, 5], rtol=0.1)
    np.testing.assert_allclose([loc[2], scale[2]], [x[:, 2].mean(), x[:, 2].std()])


def test_large_numbers_have_a_scale() -> None:
    x = np.array([[1e200], [3e200]])
    np.testing.assert_allclose(np.ravel(location_and_scale(x, "float64")), [2e200, 1e200])


def test_context_net_is_checked() -> None:
    for half in (torch_flows, jax_flows):
        coupling = half.AffineCoupling(2, (4,), context_dim=3)
        base = half.StandardNormal(2)
        flow = half.Flow(coupling, base, half.Standardize(3))
        assert flow.context_dim == 3
        for net, reason in (
            (half.Standardize(2), "makes 2 numbers where 3 are expected"),
            ([half.Affine(3), half.AffineCoupling(3, context_dim=1)], "to take no context"),
            (half.Squeeze(), "to be of vectors"),
            (7, "networks with in_dim and out_dim, or bijectors, got int"),
        ):
            with pytest.raises((ValueError, TypeError), match=reason):
                half.Flow(coupling, base, net)
        with pytest.raises(ValueError, match="no part that takes a context"):
            half.Flow(half.Affine(2), base, half.Standardize(2))
        for names in (["a"], ["a", "a"], "ab", ["a", ""]):
            with pytest.raises(ValueError, match="Flow expects columns as"):
                half.Flow(half.Affine(2), base, columns=names)


def test_a_network_as_context_net(tmp_path) -> None:
    coupling = torch_flows.AffineCoupling(2, (4,), context_dim=3)
    flow = torch_flows.Flow(coupling, torch_flows.StandardNormal(2), torch_flows.MLP(5, 3, (4,)))
    x, context = torch.zeros(7, 2), torch.linspace(0, 1, 5)
    flow = torch_flows.standardized(flow, np.eye(4)[:, :2], np.random.default_rng(0).random((4, 5)))
    assert flow.context_dim == 5
    assert flow.sample(4, context).shape == (4, 2)
    expected = flow.log_prob(x, context)
    plain = torch_flows.Flow(flow.bijector, flow.base)
    torch.testing.assert_close(plain.log_prob(x, flow.embed(context)), expected)
    expected.sum().backward()
    assert flow.context_net[1].layers[0].weight.grad.abs().sum() > 0
    torch_flows.save(flow, path := tmp_path / "flow")
    twin, variables = jax_flows.load(path)
    found = jax.jit(twin.log_prob)(variables, x.numpy(), context.numpy())
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5)
    jax_flows.save(twin, variables, tmp_path / "again")
    assert torch.equal(torch_flows.load(tmp_path / "again").log_prob(x, context), expected)


def test_initialization_sees_what_the_context_net_makes() -> None:
    for half in (torch_flows, jax_flows):
        chain = half.Chain([half.AffineCoupling(2, (4,), context_dim=2), half.ActNorm(2)])
        flow = half.Flow(chain, half.StandardNormal(2), half.Standardize(2))
        x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        if half is torch_flows:
            flow.initialize(torch.from_numpy(x), torch.from_numpy(x))
            z = flow.forward(torch.from_numpy(x), torch.from_numpy(x))[0].detach().numpy()
        else:
            variables = flow.initialize(
                flow.init(jax.random.key(0), "float32"), jnp.array(x), jnp.array(x)
            )
            z = flow.forward(variables, jnp.array(x), jnp.array(x))[0]
            assert "context_net_0" in variables["batch_stats"]
        np.testing.assert_allclose(np.std(z, 0), 1, rtol=1e-4)

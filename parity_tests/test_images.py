"""Image bijectors against oracles from outside, initialisation from data, shapes and units."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional

import jax_flows
import torch_flows
from flow_bridge.architecture import architecture
from flow_bridge.errors import NonFiniteError
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy as jax_arrays
from jax_flows.networks.convolutional import conv
from torch_flows.checkpoint import to_numpy

BOTH = pytest.mark.parametrize("half", [torch_flows, jax_flows], ids=["torch", "jax"])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def twins(half_free, seed: int = 0):
    """A model in both halves with the same random float64 weights."""
    torch_model = half_free(torch_flows).double().eval()
    generator = np.random.default_rng(seed)
    arrays = {
        name: to_numpy(a) + 0.3 * generator.standard_normal(a.shape)
        for name, a in torch_model.state_dict().items()
    }
    torch_model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
    jax_model = half_free(jax_flows)
    return torch_model, jax_model, jax_arrays(torch_to_jax(arrays, jax_model.shapes()))


def normalized_chain(half):
    """ActNorm in every position that has to be initialised: stacked, inverted, nested, behind a Split."""
    steps = [
        bijector
        for _ in range(3)
        for bijector in (half.ActNorm((4, 2, 2)), half.Invertible1x1Conv(4))
    ]
    inner = half.Chain([half.ActNorm((2, 2, 2)), half.Invert(half.ActNorm((2, 2, 2)))])
    return half.Chain([half.Squeeze(), *steps, half.Split(inner)])


# oracles


def test_squeeze_is_pixel_unshuffle():
    x = torch.from_numpy(draw(3, 2, 6, 9))
    z, log_det = torch_flows.Squeeze(3)(x)
    assert torch.equal(z, functional.pixel_unshuffle(x, 3))
    assert torch.equal(log_det, torch.zeros(3, dtype=torch.float64))
    np.testing.assert_array_equal(jax_flows.Squeeze(3).forward({}, x.numpy())[0], z)


@BOTH
def test_squeeze_of_no_rows(half):
    """torch.nn.functional.pixel_unshuffle leaves an empty batch as it is."""
    x = np.zeros((0, 3, 4, 6))
    if half is torch_flows:
        z, log_det = half.Squeeze()(torch.from_numpy(x))
    else:
        z, log_det = half.Squeeze().forward({}, x)
    assert z.shape == (0, 12, 2, 3)
    assert log_det.shape == (0,)


def test_invertible_1x1_conv_is_a_convolution():
    torch_model, jax_model, variables = twins(lambda half: half.Invertible1x1Conv(5))
    x = torch.from_numpy(draw(3, 5, 2, 4))
    eye = torch.eye(5, dtype=torch.float64)[..., None, None]
    matrix = torch_model(eye)[0][..., 0, 0].T
    z, log_det = torch_model(x)
    torch.testing.assert_close(z, functional.conv2d(x, matrix[..., None, None]))
    expected = 2 * 4 * torch.linalg.slogdet(matrix)[1].expand(3)
    torch.testing.assert_close(log_det, expected)
    np.testing.assert_allclose(jax_model.forward(variables, x.numpy())[1], expected.detach())


@pytest.mark.parametrize(
    ("in_dim", "out_dim", "size"), [(2, 3, 3), (3, 2, 3), (2, 2, 1), (3, 1, 5)]
)
def test_jax_convolution(in_dim, out_dim, size):
    """Both branches of the convolution by matrix products, against XLA's own."""
    x = jnp.asarray(draw(in_dim, 4, 5, 3))
    kernel = jnp.asarray(draw(size, size, in_dim, out_dim, seed=1))
    bias = jnp.asarray(draw(out_dim, seed=2))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("CNHW", "HWIO", "CNHW")
    )
    expected = expected + bias[:, None, None, None]
    np.testing.assert_allclose(conv(x, kernel, bias), expected, atol=1e-13)


def test_conv_net_starts_as_pytorch_does():
    bound = {"layers.0": 1 / math.sqrt(9 * 3), "layers.1": 1 / math.sqrt(40)}
    torch_net = torch_flows.ConvAffineCoupling(6, 40).network
    jax_model = jax_flows.ConvAffineCoupling(6, 40)
    state = jax_to_torch(jax_model.init(jax.random.key(0)))
    for name, limit in bound.items():
        for kind in ("weight", "bias"):
            a = state[f"network.{name}.{kind}"]
            b = to_numpy(torch_net.get_parameter(f"{name}.{kind}"))
            for array in (a, b):
                assert 0.85 * limit < np.abs(array).max() <= limit
    assert not state["network.layers.2.weight"].any()
    assert not torch_net.layers[2].weight.any()


def test_glow_density_integrates_to_one():
    """Importance sampling in the 4 dimensions of a 1x2x2 image."""
    torch.manual_seed(0)
    model = twins(lambda half: half.Glow((1, 2, 2), 1, 2, 4))[0]
    proposal = torch.distributions.Normal(0.0, 2.5)
    x = proposal.sample((400_000, 1, 2, 2)).double()
    with torch.no_grad():
        ratio = (model.log_prob(x) - proposal.log_prob(x).sum((1, 2, 3))).exp()
    error = ratio.std() / math.sqrt(len(x))
    assert error < 0.02
    assert abs(ratio.mean() - 1) < 4 * error


def test_large_image_log_det_in_float32():
    """The sum over 3072 dimensions and all layers stays within a few eps of its size, in both halves."""
    torch_model, jax_model, variables = twins(lambda half: half.Glow((3, 32, 32), 1, 4, 4))
    x = draw(2, 3, 32, 32)
    exact = torch_model(torch.from_numpy(x))[1].detach().numpy()
    single = torch_model.float()(torch.from_numpy(x).float())[1].detach().numpy()
    variables = jax.tree.map(lambda a: a.astype(np.float32), variables)
    twin = jax.jit(jax_model.forward)(variables, x.astype(np.float32))[1]
    assert np.abs(exact).min() > 100
    np.testing.assert_allclose(single, exact, rtol=1e-5)
    np.testing.assert_allclose(twin, exact, rtol=1e-5)


def test_memory_format_does_not_matter():
    model = twins(lambda half: half.Glow((2, 4, 4), 2, 2, 5))[0]
    x = torch.from_numpy(draw(3, 2, 4, 4))
    with torch.no_grad():
        expected = model.log_prob(x)
        last = model.log_prob(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected)


# initialisation from data


def test_initialize_is_equal_in_both_halves():
    torch_model, jax_model, variables = twins(normalized_chain)
    x = 3 + 2 * draw(50, 1, 4, 4)
    before = jax.tree.map(np.asarray, variables)
    torch_model.train().initialize(torch.from_numpy(x))
    assert torch_model.training
    new = jax_model.initialize(variables, x)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    arrays = jax_to_torch(new)
    for name, array in torch_model.state_dict().items():
        np.testing.assert_allclose(arrays[name], array, atol=1e-12, err_msg=name)
    z = torch_model.eval()(torch.from_numpy(x))[0][:, :2].detach()
    np.testing.assert_allclose(z.mean((0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(z.std((0, 2, 3), unbiased=False), 1, atol=1e-12)


@pytest.mark.parametrize("dim", [3, (3, 2, 5)])
def test_act_norm_normalizes(dim):
    x = np.array([1e3, 0, -2e-3][:3]) + np.array([2.0, 1e-4, 7.0]) * draw(40, 10, 3)
    x = x.reshape(400, 3) if dim == 3 else x.transpose(0, 2, 1).reshape(40, 3, 2, 5)
    axes = (0,) if dim == 3 else (0, 2, 3)
    model = torch_flows.ActNorm(dim).double()
    model.initialize(torch.from_numpy(x))
    z = model(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(z.mean(axes), 0, atol=1e-11)
    np.testing.assert_allclose(z.std(axes), 1, atol=1e-11)


@BOTH
def test_act_norm_of_constant_dimensions(half):
    """Elsewhere infinite, and stored for ever."""
    x = np.stack([np.full(64, 1000.1), np.zeros(64), draw(64)], -1).astype(np.float32)
    model = half.ActNorm(3)
    if half is torch_flows:
        model.initialize(torch.from_numpy(x))
        z = model(torch.from_numpy(x))[0].detach().numpy()
    else:
        variables = model.initialize(model.init(jax.random.key(0), np.float32), x)
        z = model.forward(variables, x)[0]
    np.testing.assert_allclose(z[:, :2], 0, atol=0.1)
    np.testing.assert_allclose(np.std(z[:, 2]), 1, atol=1e-5)


@pytest.mark.parametrize("bad", ["one row", "nan", "inf"])
def test_initialize_commits_nothing_bad(bad):
    torch_model, jax_model, variables = twins(normalized_chain)
    x = draw(5, 1, 4, 4)
    x = x[:1] if bad == "one row" else x
    x[0, 0, 0, 0] = {"one row": 0.0, "nan": math.nan, "inf": math.inf}[bad]
    error = ValueError if bad == "one row" else NonFiniteError
    before = {name: a.clone() for name, a in torch_model.state_dict().items()}
    with pytest.raises(error) as first:
        torch_model.initialize(torch.from_numpy(x))
    with pytest.raises(error) as second:
        jax_model.initialize(variables, x)
    assert str(first.value) == str(second.value)
    assert all(torch.equal(a, before[name]) for name, a in torch_model.state_dict().items())


def test_initialize_leaves_batch_statistics_alone():
    model = torch_flows.Flow(
        torch_flows.Chain([torch_flows.BatchNorm(2), torch_flows.ActNorm(2)]),
        torch_flows.StandardNormal(2),
    )
    model.train().initialize(torch.from_numpy(3 + draw(9, 2)).float())
    assert all(module.training for module in model.modules())
    assert not model.bijector.bijectors[0].running_mean.any()
    assert model.bijector.bijectors[1].shift.any()


def test_initialized_state_survives_a_file(tmp_path):
    """nflows and normflows once initialised again after a reload."""
    model = torch_flows.Glow((1, 4, 4), 1, 2, 4)
    x = torch.rand(20, 1, 4, 4)
    model.initialize(x)
    torch_flows.save(model, tmp_path / "glow.safetensors")
    again = torch_flows.load(tmp_path / "glow.safetensors").train()
    other = torch.rand(20, 1, 4, 4) + 5
    assert torch.equal(again.log_prob(other), model.log_prob(other))
    twin, variables = jax_flows.load(tmp_path / "glow.safetensors")
    np.testing.assert_allclose(
        twin.log_prob(variables, other.numpy()), model.log_prob(other).detach(), rtol=1e-4
    )


def test_initialize_with_context():
    torch_model, jax_model, variables = twins(
        lambda half: half.Glow((1, 2, 2), 1, 3, 4, context_dim=2)
    )
    x, context = draw(30, 1, 2, 2), draw(30, 2, seed=1)
    torch_model.initialize(*map(torch.from_numpy, (x, context)))
    arrays = jax_to_torch(jax_model.initialize(variables, x, context))
    for name, array in torch_model.state_dict().items():
        np.testing.assert_allclose(arrays[name], array, atol=1e-12, err_msg=name)


# shapes


def test_shapes_go_through_a_chain():
    for half in (torch_flows, jax_flows):
        chain = half.Chain([half.Squeeze(), half.ActNorm((8, 3, 2)), half.Squeeze(1)])
        assert chain.event_shape == (2, 6, 4)
        assert chain.latent_shape == (8, 3, 2)
        turned = half.Invert(chain)
        assert turned.event_shape == (8, 3, 2)
        assert turned.latent_shape == (2, 6, 4)
        flow = half.Flow(half.Chain([half.Squeeze()]), half.StandardNormal((8, 3, 2)))
        assert flow.event_shape == (2, 6, 4)
        assert flow.latent_shape == (8, 3, 2)


def test_flow_whose_latent_has_another_shape():
    torch_flow, jax_flow, variables = twins(
        lambda half: half.Flow(
            half.Chain([half.Squeeze(), half.Squeeze(), half.Invertible1x1Conv(16)]),
            half.StandardNormal((16, 1, 2)),
        )
    )
    assert "bijectors_2" in variables["params"]["bijector"]  # equal Squeezes are not scanned over
    x = draw(3, 1, 4, 8)
    z = torch_flow(torch.from_numpy(x))[0]
    assert z.shape == (3, 16, 1, 2)
    np.testing.assert_allclose(torch_flow.inverse(z)[0].detach(), x, atol=1e-10)
    log_prob = torch_flow.log_prob(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(jax.jit(jax_flow.log_prob)(variables, x), log_prob)
    assert torch_flow.sample(5).shape == (5, 1, 4, 8)
    samples = jax.eval_shape(lambda key: jax_flow.sample(variables, key, 5), jax.random.key(0))
    assert samples.shape == (5, 1, 4, 8)


BAD_CONSTRUCTIONS = [
    lambda half: half.ActNorm((2, 3)),
    lambda half: half.ActNorm(0),
    lambda half: half.Squeeze(0),
    lambda half: half.Invertible1x1Conv(0),
    lambda half: half.ConvAffineCoupling(1),
    lambda half: half.ConvAffineCoupling(4, hidden_channels=0),
    lambda half: half.ConvAffineCoupling(4, activation="swish"),
    lambda half: half.Split(half.Chain([half.Squeeze(), half.ActNorm((8, 2, 2))])),
    lambda half: half.Split(half.ActNorm(4)),
    lambda half: half.Logit(0.5),
    lambda half: half.Glow((1, 4, 6), num_levels=2),
    lambda half: half.Glow((4, 4)),
    lambda half: half.Glow(16),
    lambda half: half.Glow((1, 4, 4), num_steps=0),
    lambda half: half.Chain([half.Squeeze(), half.ActNorm((6, 2, 2))]),
    lambda half: half.Chain([half.ActNorm((1, 3, 4)), half.Squeeze()]),
    lambda half: half.Chain([half.Squeeze(), half.ActNorm((8, 2, 2)), half.ActNorm((4, 2, 2))]),
    lambda half: half.Flow(half.Chain([half.Squeeze(), half.ActNorm((8, 2, 2))]),
                           half.StandardNormal((2, 4, 4))),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD_CONSTRUCTIONS)))
def test_bad_constructions_say_the_same(number):
    messages = []
    for half in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match=r"^[A-Za-z].*\.$") as error:
            BAD_CONSTRUCTIONS[number](half)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_bad_inputs_say_the_same():
    squeeze, twin = torch_flows.Squeeze(2), jax_flows.Squeeze(2)
    for direction, shape in (("forward", (1, 3, 4)), ("inverse", (3, 2, 2)), ("forward", (4, 4))):
        x = np.zeros(shape, np.float32)
        with pytest.raises(ValueError) as first:  # noqa: PT011
            getattr(squeeze, direction)(torch.from_numpy(x))
        with pytest.raises(ValueError) as second:  # noqa: PT011
            getattr(twin, direction)({}, x)
        assert str(first.value) == str(second.value)


# units


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_the_convolution_exponential_is_that_of_a_matrix(half):
    """Of scipy, for a kernel that its bound divides and one that it does not."""
    generator = np.random.default_rng(0)
    for scale in (0.02, 2.0):
        # all of one sign: the norm of M is then near its bound
        kernel = scale * abs(generator.normal(size=(2, 2, 3, 3)))
        size = abs(kernel).sum((1, 2, 3)).max()
        inside = kernel * min(1, 1.5 / size)
        matrix = np.zeros((2, 3, 4, 2, 3, 4))
        for i, j, di, dj in itertools.product(range(3), range(4), (-1, 0, 1), (-1, 0, 1)):
            if 0 <= i + di < 3 and 0 <= j + dj < 4:
                matrix[:, i, j, :, i + di, j + dj] = inside[:, :, di + 1, dj + 1]
        exact = scipy.linalg.expm(matrix.reshape(24, 24))
        x = generator.normal(size=(5, 2, 3, 4))
        if half == "torch":
            model = torch_flows.ConvolutionExponential(2, bound=1.5).double()
            model.raw_kernel.data = torch.from_numpy(kernel)
            with torch.no_grad():
                z, log_det = model(torch.from_numpy(x))
                back = model.inverse(z)[0]
        else:
            model = jax_flows.ConvolutionExponential(2, bound=1.5)
            variables = {"params": {"raw_kernel": jnp.asarray(kernel)}}
            z, log_det = model.forward(variables, x)
            back = model.inverse(variables, z)[0]
        np.testing.assert_allclose(
            np.asarray(z).reshape(5, 24), x.reshape(5, 24) @ exact.T, rtol=0, atol=2e-14
        )
        np.testing.assert_allclose(
            np.asarray(log_det), np.linalg.slogdet(exact)[1], rtol=0, atol=2e-14
        )
        np.testing.assert_allclose(np.asarray(back), x, rtol=0, atol=1e-13)


def test_dequantize():
    levels = np.random.default_rng(0).integers(0, 17, (5, 1, 4, 4))
    noise = np.random.default_rng(1).uniform(size=levels.shape)
    a = torch_flows.dequantize(torch.from_numpy(levels), 17, torch.from_numpy(noise))
    b = jax_flows.dequantize(jnp.asarray(levels), 17, jnp.asarray(noise))
    np.testing.assert_allclose(a, (levels + noise) / 17, rtol=1e-15)
    np.testing.assert_allclose(b, (levels + noise) / 17, rtol=1e-15)
    np.testing.assert_array_equal(torch_flows.quantize(a, 17), levels)
    np.testing.assert_array_equal(jax_flows.quantize(b, 17), levels)
    drawn = torch_flows.dequantize(
        torch.from_numpy(levels).byte(), 17, generator=torch.Generator().manual_seed(0)
    )
    assert drawn.dtype == torch.float32
    assert torch.equal(torch_flows.quantize(drawn, 17), torch.from_numpy(levels).float())
    key = jax.random.key(0)
    drawn = jax_flows.dequantize(jnp.asarray(levels, jnp.float32), 17, key=key)
    assert drawn.dtype == jnp.float32
    with pytest.raises(ValueError, match="needs noise or a key"):
        jax_flows.dequantize(jnp.asarray(levels), 17)


def test_dequantize_stays_below_one():
    """15 + 0.99999994 rounds to 16 in float32, and the logit of 16 / 16 is infinite."""
    noise = np.full(3, np.nextafter(np.float32(1), np.float32(0)), np.float32)
    noise[2] = np.nan
    x = np.array([15, 3, 3], np.float32)
    for y in (
        torch_flows.dequantize(torch.from_numpy(x), 16, torch.from_numpy(noise)).numpy(),
        np.asarray(jax_flows.dequantize(jnp.asarray(x), 16, jnp.asarray(noise))),
    ):
        assert y[0] < 1
        assert np.isnan(y[2])


def test_bits_per_dimension():
    """A uniform density needs log2(17) = 4.0875 bits for each of 17 levels, in both conventions."""
    for half in (torch_flows, jax_flows):
        assert half.bits_per_dimension(0.0, (1, 8, 8), 17) == pytest.approx(4.087462841250339)
        log_prob = -64 * math.log(17)
        assert half.bits_per_dimension(log_prob, 64) == pytest.approx(4.087462841250339)
    bits = torch_flows.bits_per_dimension(torch.zeros(3), (1, 8, 8), 16)
    assert torch.equal(bits, torch.full((3,), 4.0))


def test_logit_states_its_domain():
    for half in (torch_flows, jax_flows):
        assert half.Logit(0.0).domain == (0, 1)
        assert half.Logit(0.05).domain == pytest.approx((-0.05 / 0.9, 1 + 0.05 / 0.9))
    x = torch.tensor([[[[-0.01, 0.0, 1.0, 1.01]]]], dtype=torch.float64)
    assert torch_flows.Logit(0.05)(x)[0].isfinite().all()
    assert torch_flows.Logit(0.0)(x)[0].isnan().flatten().tolist() == [True, False, False, True]


# models


def test_glow_architecture_and_size():
    model = torch_flows.Glow((3, 8, 8), 2, 3, 16, context_dim=10)
    assert architecture(model)["shape"] == [3, 8, 8]
    assert model.latent_shape == model.event_shape == (3, 8, 8)

    def step(channels: int) -> int:
        inputs = channels // 2 + 10
        network = 9 * inputs * 16 + 16 + 16 * 16 + 16 + 9 * 16 * channels + channels
        return 2 * channels + channels**2 + network

    assert sum(p.numel() for p in model.parameters()) == 3 * (step(12) + step(24))


def test_glow_scans_over_its_steps():
    leaves = jax.tree.leaves(jax_flows.Glow((3, 8, 8), 1, 30).shapes()["params"])
    assert len(leaves) == 9


def test_glow_depends_on_its_context():
    model = twins(lambda half: half.Glow((1, 4, 4), 2, 2, 4, context_dim=3))[0]
    x = torch.from_numpy(draw(1, 1, 4, 4))
    labels = torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        log_prob = model.log_prob(x.expand(3, 1, 4, 4), labels)
        assert model.sample(7, labels).shape == (7, 3, 1, 4, 4)
    assert len(set(log_prob.tolist())) == 3


@pytest.mark.parametrize("half", [torch_flows, jax_flows])
def test_split_keeps_the_shape_of_any_image(half) -> None:
    """Its bijector may be one of images of any size, so it is asked for each."""
    x = torch.zeros(2, 2, 4, 4) if half is torch_flows else np.zeros((2, 2, 4, 4))

    def forward(bijector, x):
        return bijector.forward(x) if half is torch_flows else bijector.forward({"params": {}}, x)

    with pytest.raises(
        ValueError, match=r"keeps their shape, got one from .*1, 4, 4.* to .*4, 2, 2"
    ):
        forward(half.Split(half.Squeeze()), x)
    with pytest.raises(ValueError, match="Split expects channels divisible by 2, got 1"):
        forward(half.Split(half.Tanh(event_ndim=3)), x[:, :1])
    z, _ = forward(half.Split(half.Tanh(event_ndim=3)), x)
    assert z.shape == x.shape

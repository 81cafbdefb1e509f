"""Base distributions: those of a context, and a user's own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import special, stats

import jax_flows
import torch_flows
from flow_bridge.errors import ConversionError
from flow_bridge.weights import torch_to_jax
from jax_flows.checkpoint import from_numpy
from parity_tests.catalogue import Arrays, Case, arch, flow, tanh_network
from parity_tests.sentences import same
from torch_flows.checkpoint import to_numpy
from twinflows import check_parity

pytestmark = pytest.mark.usefixtures("quick_jax")

NORMAL = arch("DiagonalNormal", dim=2, context_dim=3, conditioner=tanh_network())
MIXTURE = arch(
    "GaussianMixture", dim=2, num_components=3, context_dim=3, conditioner=tanh_network()
)
AFFINE = arch("Affine", dim=2)


def weights_of(description: dict[str, Any]) -> Arrays:
    """Random float64 weights of a base, from those of a flow with it."""
    whole = Case("base", flow(AFFINE, description), scale=1.5).weights()
    return {k.removeprefix("base."): a for k, a in whole.items() if k.startswith("base.")}


def network_of(weights: Arrays, context: np.ndarray) -> np.ndarray:
    """The output of the MLP that the weights are of, by hand."""
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    for name in names:
        linear = context @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        context = np.tanh(linear) if name != names[-1] else linear
    return context


def both(description: dict[str, Any], weights: Arrays) -> tuple[Any, Any, Any]:
    in_torch = torch_flows.build(description).double()
    in_torch.load_state_dict({k: torch.from_numpy(a) for k, a in weights.items()})
    in_jax = jax_flows.build(description)
    return in_torch, in_jax, from_numpy(torch_to_jax(weights, in_jax.shapes()))


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_conditional_bases_against_scipy(half: str) -> None:
    """Densities, and samples from the same noise: one row of parameters for each row of context."""
    generator = np.random.default_rng(0)
    z, noise, context = (generator.standard_normal((6, d)) for d in (2, 3, 3))
    for description in (NORMAL, MIXTURE):
        weights = weights_of(description)
        out, is_mixture = network_of(weights, context), description is MIXTURE
        raw = out.reshape(6, 3 if is_mixture else 1, -1)
        logits = raw[..., 0] if is_mixture else np.zeros((6, 1))
        loc, log_scale = np.moveaxis(raw[..., int(is_mixture) :].reshape(6, -1, 2, 2), -1, 0)
        log_weights = special.log_softmax(logits, -1)
        normal = stats.norm(loc, np.exp(log_scale)).logpdf(z[:, None]).sum(-1)
        expected = special.logsumexp(normal + log_weights, -1)
        ends = np.exp(log_weights).cumsum(-1)[:, :-1]
        given = noise if is_mixture else noise[:, 1:]
        chosen = (stats.norm.cdf(noise[:, :1]) >= ends).sum(-1)
        rows = np.arange(6), chosen
        drawn = loc[rows] + np.exp(log_scale[rows]) * noise[:, 1:]
        base, twin, variables = both(description, weights)
        if half == "torch":
            tensors = [torch.from_numpy(a) for a in (z, given, context)]
            found = base.log_prob(tensors[0], tensors[2]).detach()
            samples = base.from_noise(tensors[1], tensors[2]).detach()
        else:
            found = twin.log_prob(variables, z, context)
            samples = twin.from_noise(variables, given, context)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        np.testing.assert_allclose(samples, drawn, rtol=1e-12)


@pytest.mark.parametrize("base", [NORMAL, MIXTURE], ids=lambda base: base["type"])
def test_conditional_samples_are_those_of_their_rows(base: dict[str, Any]) -> None:
    """The mean of many samples of each of two contexts, through a whole flow; JAX's by torch's density."""
    description = arch(
        "Flow",
        bijector=arch("Planar", dim=2, context_dim=3),
        base=base,
        context_net=arch("MLP", in_dim=4, out_dim=3, hidden_dims=[], activation="tanh"),
    )
    model, twin, variables = both(description, Case("flow", description).weights())
    context = np.random.default_rng(1).standard_normal((2, 1, 4))
    given, generator = torch.from_numpy(context), torch.Generator().manual_seed(0)
    with torch.no_grad():
        x, log_prob = model.sample_and_log_prob(5000, given, generator)
        torch.testing.assert_close(log_prob, model.log_prob(x, given), rtol=1e-7, atol=1e-9)
        assert x.shape == (5000, 2, 1, 2)
        for i in range(2):
            alone = model.sample((5000,), given[i, 0], generator)
            spread = float(x[:, i, 0].std(0).max())
            torch.testing.assert_close(x[:, i, 0].mean(0), alone.mean(0), rtol=0, atol=0.1 * spread)
        none = twin.sample(variables, jax.random.key(0), 0, context)
        assert none.shape == model.sample(0, given).shape == (0, 2, 1, 2)
        draw = jax.jit(twin.sample_and_log_prob, static_argnums=2)
        x, log_prob = (np.array(a) for a in draw(variables, jax.random.key(0), 3, context))
        expected = model.log_prob(torch.from_numpy(x), given)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("base", [NORMAL, MIXTURE], ids=lambda base: base["type"])
def test_the_halves_fit_a_conditional_base_alike(base: dict[str, Any], tmp_path) -> None:
    """Weights after some steps, of fit and (with a normal) of fit_to_energy; and the files."""
    case = Case("flow", flow(AFFINE, base))
    model, twin, variables = both(case.architecture, case.weights())
    x, context = case.inputs(20), case.context(20)
    options = {"num_epochs": 2, "batch_size": 10, "validation": 0, "progress": False}
    torch_flows.fit(model, x, context=context, **options)
    variables, _ = jax_flows.fit(twin, variables, x, context=context, **options)
    if base is NORMAL:
        steps = {"context": context[0], "num_steps": 2, "batch_size": 5, "progress": False}
        torch_flows.fit_to_energy(model, lambda x: x.square().sum(-1), **steps)
        variables, _ = jax_flows.fit_to_energy(
            twin, variables, lambda x: jnp.square(x).sum(-1), **steps
        )
    jax_flows.save(twin, variables, tmp_path / "flow")
    loaded = torch_flows.load(tmp_path / "flow").state_dict()
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(loaded[name], array, rtol=1e-11, atol=1e-13)


def test_standardized_scales_the_context_of_a_base() -> None:
    case = Case("flow", flow(AFFINE, NORMAL))
    model, twin, variables = both(case.architecture, case.weights())
    x, context = 5 + 3 * case.inputs(30), 100 * case.context(30)
    whole = torch_flows.standardized(model, x, context)
    scaled = [torch.from_numpy((a - a.mean(0)) / a.std(0)) for a in (x, context)]
    expected = (model.log_prob(*scaled) - np.log(x.std(0)).sum()).detach()
    found = whole.log_prob(torch.from_numpy(x), torch.from_numpy(context)).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    whole, variables = jax_flows.standardized(twin, variables, x, context)
    np.testing.assert_allclose(whole.log_prob(variables, x, context), expected, rtol=1e-11)


def test_bad_contexts_of_bases_get_the_same_sentence() -> None:
    base, twin, variables = both(NORMAL, weights_of(NORMAL))
    z = np.zeros((4, 2))
    for context in (None, np.zeros((4, 2)), np.zeros((3, 3)), np.zeros((4, 3), np.float32), [1.0]):
        given = torch.from_numpy(context) if isinstance(context, np.ndarray) else context
        calls = (
            (lambda g=given: base.log_prob(torch.from_numpy(z), g))
            , (lambda c=context: twin.log_prob(variables, z, c))
        )  # fmt: skip
        sentences = []
        for call in calls:
            with pytest.raises((ValueError, TypeError, ConversionError)) as caught:
                call()
            sentences.append(same(str(caught.value)))
        assert sentences[0] == sentences[1]
    with pytest.raises(ValueError, match="takes no context"):
        torch_flows.StandardNormal(2).log_prob(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="takes no context"):
        jax_flows.StandardNormal(2).log_prob({}, jnp.zeros(2), jnp.zeros(3))
    for half in (torch_flows, jax_flows):
        conditional = half.build(NORMAL)
        with pytest.raises(
            ValueError, match="RealNVP has a base of context_dim 3: give it the same"
        ):
            half.RealNVP(dim=2, base=conditional)
        assert half.RealNVP(dim=2, context_dim=3, base=half.build(NORMAL)).context_dim == 3
        with pytest.raises(ValueError, match="different context_dim: 2 and 3"):
            half.Flow(half.Planar(2, context_dim=2), half.build(NORMAL))
        for lacking, name in (("mask", "SeparateMLPs"), ("order", "MaskedMLP")):
            with pytest.raises(
                ValueError, match=f"has no {lacking} for its conditioner {name}: take"
            ):
                half.DiagonalNormal(2, 3, getattr(half, name))
            with pytest.raises(
                ValueError, match=f"has no {lacking} for its conditioner {name}: take"
            ):
                half.Elementwise(2, half.AffineMap(), 3, getattr(half, name))
        with pytest.raises(ValueError, match="has no order for its conditioner MaskedMLP: take"):
            half.Coupling(3, half.AffineMap(), half.MaskedMLP)
        with pytest.raises(ValueError, match="a conditioner only with a context"):
            half.DiagonalNormal(2, conditioner=half.MLP)


# a user's own, registered under one name in both halves


@torch_flows.register
class OwnLaplace(torch_flows.Distribution):
    """Independent Laplace distributions of a learnable scale."""

    noise = "uniform"

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__(dim)
        self.log_scale = torch.nn.Parameter(torch.zeros(self.event_shape))

    def log_density(self, z: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        scaled = z.abs() * (-self.log_scale).exp() + self.log_scale + math.log(2)
        return -scaled.flatten(-len(self.event_shape)).sum(-1)

    def map_noise(self, noise: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        centred = noise - 0.5
        return -centred.sign() * (-2 * centred.abs()).log1p() * self.log_scale.exp()


TORCH_LAPLACE = OwnLaplace


@jax_flows.register
@dataclass(frozen=True)
class OwnLaplace(jax_flows.Distribution):
    """As ``OwnLaplace``."""

    noise = "uniform"

    dim: int | Sequence[int]

    def init_variables(self, key: jax.Array, dtype: Any) -> dict[str, Any]:
        return {"params": {"log_scale": jnp.zeros(self.event_shape, dtype)}}

    def log_density(self, variables: Any, z: jax.Array, context: jax.Array | None) -> jax.Array:
        log_scale = variables["params"]["log_scale"]
        scaled = jnp.abs(z) * jnp.exp(-log_scale) + log_scale + math.log(2)
        return -scaled.sum(tuple(range(-len(self.event_shape), 0)))

    def map_noise(self, variables: Any, noise: jax.Array, context: jax.Array | None) -> jax.Array:
        centred = noise - 0.5
        scale = jnp.exp(variables["params"]["log_scale"])
        return -jnp.sign(centred) * jnp.log1p(-2 * jnp.abs(centred)) * scale


def test_a_distribution_of_ones_own_works_in_flows_and_files(tmp_path) -> None:
    torch.manual_seed(0)
    model = torch_flows.Flow(torch_flows.Affine(2), TORCH_LAPLACE(2))
    with torch.no_grad():
        model.base.log_scale.copy_(torch.tensor([0.5, -1.0]))
    x = np.random.default_rng(0).standard_normal((5, 2))
    assert check_parity(model, x).passed
    torch_flows.save(model, tmp_path / "flow")
    twin, variables = jax_flows.load(tmp_path / "flow")
    expected = stats.laplace(scale=np.exp([0.5, -1.0])).logpdf(x).sum(-1)
    found = twin.log_prob(variables, x.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    draws = np.asarray(twin.sample(variables, jax.random.key(0), 20_000))
    np.testing.assert_allclose(np.abs(draws).mean(0), np.exp([0.5, -1.0]), rtol=0.05)
    noise = np.random.default_rng(1).random((4, 2)).astype(np.float32)
    in_torch = model.from_noise(torch.from_numpy(noise))
    for a, b in zip(in_torch, twin.from_noise(variables, noise), strict=True):
        np.testing.assert_allclose(to_numpy(a), b, rtol=1e-5, atol=1e-6)


def test_a_base_beyond_the_codomain_is_refused() -> None:
    messages = set()
    half: Any
    for half in (torch_flows, jax_flows):
        normal, blocks = half.StandardNormal(2), [[0], [1]]
        half.Flow(half.Chain([half.Affine(2), half.Sigmoid()]), half.Uniform(2))
        half.Flow(half.Affine(2), half.Uniform(2, -3, 5))
        half.Flow(half.Invert(half.Sigmoid()), normal)
        for bijector, base in (
            (half.Tanh(), normal),
            (half.Chain([half.Affine(2), half.Sigmoid()]), normal),
            (half.Invert(half.Chain([half.Invert(half.Exp()), half.Affine(2)])), normal),
            (half.Blockwise([half.Affine(1), half.Softplus()], blocks), normal),
            (half.Sigmoid(), half.Uniform(2, 0, 2)),
        ):
            with pytest.raises(ValueError, match="would not integrate to 1") as caught:
                half.Flow(bijector, base)
            messages.add(str(caught.value))
    assert len(messages) == 5

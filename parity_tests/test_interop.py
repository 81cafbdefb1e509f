"""Flows inside the libraries of others: every test runs the host library."""

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pytest
import torch
from torch.distributions import Independent, Laplace, Normal, TransformedDistribution, biject_to

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from jax_flows import interop
from jax_flows.checkpoint import from_numpy as jax_arrays
from parity_tests.catalogue import Case, arch, cases, coupling, flow
from parity_tests.sentences import same
from parity_tests.test_isolation import BLOCK
from torch_flows.interop import BijectorTransform, FlowDistribution

PAGE = Path(__file__).parent.parent / "docs" / "distributions.md"
CONDITIONAL = Case("coupling", flow(
    coupling(dim=2, hidden_dims=[], context_dim=3), arch("StandardNormal", dim=2)))  # fmt: skip
MIXTURE = Case(
    "mixture", flow(arch("Affine", dim=2), arch("GaussianMixture", dim=2, num_components=3))
)
CONDITIONAL_MIXTURE = Case("conditional mixture", flow(arch("Affine", dim=2), arch(
    "GaussianMixture", dim=2, num_components=3, context_dim=2)))  # fmt: skip
GLOW = Case("glow", arch("Glow", shape=[1, 4, 4], num_levels=1, num_steps=1, hidden_channels=4,
                         context_dim=2))  # fmt: skip
UNIT = Case("unit", flow(
    arch("Chain", bijectors=[arch("Logit", alpha=0.0, event_ndim=1), arch("Affine", dim=2)]),
    arch("DiagonalNormal", dim=2)), draw=lambda g, shape: g.uniform(0.05, 0.95, shape))  # fmt: skip


def halves(case: Case):
    """The PyTorch model, and the JAX model with its variables."""
    jax_model = jax_flows.build(case.architecture)
    return (
        case.torch_model(),
        jax_model,
        jax_arrays(torch_to_jax(case.weights(), jax_model.shapes())),
    )


def tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)


def close(a, b, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# every host


@pytest.mark.parametrize(
    "case", [CONDITIONAL, MIXTURE, CONDITIONAL_MIXTURE, GLOW, UNIT], ids=lambda case: case.name
)
def test_hosts_give_the_density_of_the_flow(case: Case) -> None:
    torch_model, jax_model, variables = halves(case)
    x, context = case.inputs(5, 1, 4), case.context(3, 1)
    with torch.no_grad():
        d = torch_model.distribution(tensor(context))
        value = d.log_prob(torch.from_numpy(x)).numpy()
    batch = () if context is None else (3, 1)
    full = np.broadcast_shapes((5, 1, 4), batch)
    assert value.shape == full
    if context is not None:
        wide = torch.from_numpy(np.broadcast_to(x, (*full, *d.event_shape)).copy())
        close(value, torch_model.log_prob(wide, tensor(context).expand(*full, -1)).detach())
    for host in (jax_model.distribution, interop_distrax(jax_model)):
        e = host(variables, None if context is None else jnp.asarray(context))
        close(jax.jit(lambda d, x: d.log_prob(x))(e, x), value)
        assert e.batch_shape == tuple(d.batch_shape) == batch
        assert e.event_shape == tuple(d.event_shape)
    assert d.sample((2,)).shape == (2, *batch, *d.event_shape)


def interop_distrax(jax_model):
    return lambda variables, context: interop.distrax_distribution(jax_model, variables, context)


def test_support_is_the_domain() -> None:
    torch_model, jax_model, variables = halves(UNIT)
    d, e = torch_model.distribution(), jax_model.distribution(variables)
    for values, inside in (([0.2, 0.9], True), ([0.2, 1.1], False)):
        assert bool(d.support.check(torch.tensor(values))) is inside
        assert bool(e.support(jnp.asarray(values))) is inside
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(torch.tensor([0.2, 1.1]).double())
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert e.log_prob(jnp.asarray([0.2, 1.1])) == -jnp.inf
    free = torch.randn(7, 2, dtype=torch.float64)
    assert d.log_prob(biject_to(d.support)(free)).isfinite().all()
    assert jnp.isfinite(e.log_prob(numpyro_dist.biject_to(e.support)(jnp.asarray(free)))).all()
    exp = torch_flows.Exp()
    assert exp.transform().codomain.base_constraint is torch.distributions.constraints.positive
    elu = torch_flows.ELU(alpha=0.5)
    assert elu.transform().codomain.base_constraint.lower_bound == -0.5
    assert (
        torch_flows.Invert(torch_flows.Tanh()).transform().domain.base_constraint.upper_bound == 1
    )
    one_sided = jax_flows.ELU(alpha=0.5).transform({}).codomain.base_constraint
    assert one_sided.lower_bound == -0.5


def test_samples_without_gradients_to_every_weight() -> None:
    torch_model, jax_model, variables = halves(MIXTURE)
    d, e = torch_model.distribution(), jax_model.distribution(variables)
    assert not d.has_rsample
    assert not e.has_rsample
    assert not d.sample((3,)).requires_grad
    sentence = "cannot differentiate through the samples of a GaussianMixture base"
    with pytest.raises(NotImplementedError, match=sentence):
        d.rsample()
    with pytest.raises(NotImplementedError, match=sentence):
        e.rsample(jax.random.key(0))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [(None, ValueError), ((4, 2), ValueError), ((), ValueError), ("list", TypeError),
     ("int", TypeError)],
)  # fmt: skip
def test_bad_contexts_get_the_same_sentence(shape, kind) -> None:
    torch_model, jax_model, variables = halves(CONDITIONAL)
    context: object = [0.0, 0.0, 0.0] if shape == "list" else None
    if shape == "int":
        context = np.zeros(3, np.int32)
    elif isinstance(shape, tuple):
        context = np.zeros(shape)
    sentences = set()
    for host in (
        lambda c: torch_model.distribution(tensor(c) if isinstance(c, np.ndarray) else c),
        lambda c: jax_model.distribution(variables, c),
        lambda c: interop.distrax_distribution(jax_model, variables, c),
    ):
        with pytest.raises(kind) as error:
            host(context)
        sentences.add(same(str(error.value)))
    assert len(sentences) == 1
    part = (
        torch_model.bijector,
        jax_model.bijector,
        {k: v["bijector"] for k, v in variables.items() if v},
    )
    sentences = set()
    for host in (
        lambda c: part[0].transform(tensor(c) if isinstance(c, np.ndarray) else c),
        lambda c: part[1].transform(part[2], c),
        lambda c: interop.distrax_bijector(part[1], part[2], c),
    ):
        with pytest.raises(kind) as error:
            host(context)
        sentences.add(same(str(error.value)))
    assert len(sentences) == 1


# torch.distributions


@pytest.fixture(autouse=True)
def validation() -> None:
    """PyTorch's default, which ``torch.compile`` turns off for the rest of the process."""
    torch.distributions.Distribution.set_default_validate_args(True)


def test_torch_shapes_and_expansion() -> None:
    model, context = CONDITIONAL.torch_model(), tensor(CONDITIONAL.context(4, 1))
    d = model.distribution(context)
    assert d.batch_shape == (4, 1)
    assert d.event_shape == (2,)
    assert repr(d).endswith("FlowDistribution(Flow, batch_shape=(4, 1), event_shape=(2,))")
    e = d.expand((5, 4, 3))
    assert type(e) is type(d)
    assert e.batch_shape == (5, 4, 3)
    x = e.rsample((2,))
    assert x.shape == (2, 5, 4, 3, 2)
    assert len(x.detach().unique(dim=0)) == 2
    assert x.detach().reshape(-1, 2).unique(dim=0).shape[0] == 120
    torch.testing.assert_close(e.log_prob(x), model.log_prob(x, context.expand(4, 3, 3)))
    torch.testing.assert_close(
        e.log_prob(x[0, 0, 0]),
        model.log_prob(x[0, 0, 0].expand(4, 3, 2), context).expand(5, 4, 3),
    )
    assert e.expand((6, 5, 4, 3)).sample().shape == (6, 5, 4, 3, 2)
    with pytest.raises(ValueError, match=r"batch shape \(4, 1\) does not expand to \(3, 1\)"):
        d.expand((3, 1))
    with pytest.raises(ValueError, match="does not expand"):
        d.expand((4,))
    plain = torch_flows.StandardNormal(2)
    unconditional = torch_flows.Flow(torch_flows.Affine(2), plain).distribution().expand((3, 1))
    assert unconditional.sample((7,)).shape == (7, 3, 1, 2)
    assert unconditional.log_prob(torch.zeros(5, 2)).shape == (3, 5)


def test_torch_validation() -> None:
    model = CONDITIONAL.torch_model()
    context = tensor(CONDITIONAL.context(4))
    d = model.distribution(context)
    with pytest.raises(ValueError, match="event_shape"):
        d.log_prob(torch.zeros(4, 3).double())
    with pytest.raises(ValueError, match="broadcastable"):
        d.log_prob(torch.zeros(3, 2).double())
    with pytest.raises(TypeError, match="float64 weights but x is float32"):
        d.log_prob(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="Expected parameter context"):
        model.distribution(context * torch.nan)
    bad = torch.full((4, 2), torch.nan).double()
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(bad)
    loose = model.distribution(context, validate_args=False)
    assert loose.log_prob(bad).isnan().all()
    assert loose.expand((2, 4)).log_prob(bad).isnan().all()


def test_torch_gradients_reach_weights_and_context() -> None:
    model, context = CONDITIONAL.torch_model(), tensor(CONDITIONAL.context(4)).requires_grad_()
    d = model.distribution(context)
    x = d.rsample((3,))
    (d.log_prob(x) + x.square().sum(-1)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.numel())
    assert context.grad.any(-1).all()
    assert not d.sample().requires_grad


def test_torch_compiles_and_maps() -> None:
    model, context = CONDITIONAL.torch_model(), tensor(CONDITIONAL.context(4))
    x = tensor(CONDITIONAL.inputs(3, 4))

    def densities(x):
        normal = Normal(torch.zeros(2).double(), torch.ones(2), validate_args=False)
        base = Independent(normal, 1, validate_args=False)
        d = model.distribution(context, validate_args=False)
        transform = model.bijector.transform(context)
        same = TransformedDistribution(base, transform.inv, validate_args=False)
        return d.log_prob(x), same.log_prob(x), d.rsample((5,))

    exact = model.log_prob(x, context)
    *values, draws = torch.compile(densities, backend="eager", fullgraph=True)(x)
    assert draws.shape == (5, 4, 2)
    loose = model.distribution(context, validate_args=False)
    for value in (*values, torch.func.vmap(loose.log_prob)(x)):
        torch.testing.assert_close(value, exact)


@pytest.mark.parametrize("case", [CONDITIONAL, GLOW], ids=lambda case: case.name)
def test_torch_transformed_distribution_is_the_flow(case: Case) -> None:
    model, context = case.torch_model(), tensor(case.context(4))
    shape = model.latent_shape
    base = Independent(Normal(torch.zeros(shape).double(), 1.0), len(shape))
    transform = model.bijector.transform(context)
    d = TransformedDistribution(base, transform.inv)
    assert d.batch_shape == (4,)
    assert d.event_shape == model.event_shape
    x = d.rsample((3,))
    with mock.patch.object(model.bijector, "map_forward", wraps=model.bijector.map_forward) as run:
        value = d.log_prob(x)
        assert run.call_count == 1
    torch.testing.assert_close(value, model.log_prob(x, context), rtol=1e-12, atol=1e-12)
    assert d.expand((5, 4)).sample((2,)).shape == (2, 5, 4, *shape)

    cached = TransformedDistribution(base, transform.with_cache().inv)
    x = cached.rsample((3,))
    with mock.patch.object(model.bijector, "map_forward") as run:
        value = cached.log_prob(x)
        run.assert_not_called()
    torch.testing.assert_close(value, model.log_prob(x, context), rtol=1e-10, atol=1e-10)
    heavy = TransformedDistribution(
        Independent(Laplace(torch.zeros(shape).double(), 1.0), len(shape)), transform.inv
    )
    assert (heavy.log_prob(x) - value).std() > 0.1


def test_torch_log_det_is_not_taken_from_another_pass() -> None:
    model = CONDITIONAL.torch_model()
    context = tensor(CONDITIONAL.context(4))
    transform = model.bijector.transform(context)
    x, other = (torch.randn(4, 2, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        z = transform(x)
    log_det = transform.log_abs_det_jacobian(x, z)
    assert log_det.requires_grad
    transform(other)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, z), log_det)
    transform(x)
    copied = copy.deepcopy(transform)
    torch.testing.assert_close(copied(x), z)
    assert copied._last is not None
    assert pickle.loads(pickle.dumps(transform))._last is None


@cases()
def test_every_bijector_is_a_torch_transform(case: Case) -> None:
    model, x, context = case.torch_model(), case.inputs(3), case.context(3)
    x, context = tensor(x), tensor(context)
    if not isinstance(model, torch_flows.Bijector):
        model, embed = model.bijector, model.embed
        context = embed(context) if model.context_dim else None
    transform = model.transform(context)
    assert isinstance(transform, BijectorTransform)
    assert transform.bijective
    assert repr(transform) == f"BijectorTransform({type(model).__name__})"
    z, log_det = model.forward(x, context)
    torch.testing.assert_close(transform(x), z, rtol=0, atol=0)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, z), log_det, rtol=0, atol=0)
    torch.testing.assert_close(transform.inv(z), x, rtol=1e-5, atol=1e-5)
    assert transform.domain.check(x).shape == transform.codomain.check(z).shape == (3,)
    assert transform.domain.check(x).all()
    assert transform.codomain.check(z).all()
    assert transform.forward_shape(x.shape) == z.shape
    assert transform.inverse_shape(z.shape) == x.shape
    with pytest.raises(ValueError, match="expects x of shape"):
        transform.forward_shape(())


# Pyro


def test_pyro_methods() -> None:
    model, context = CONDITIONAL.torch_model(), tensor(CONDITIONAL.context(4, 3))
    d = model.distribution(context)
    assert isinstance(d, FlowDistribution)
    assert type(d) is torch_flows.interop.PyroFlowDistribution
    assert type(pickle.loads(pickle.dumps(d))) is type(d)
    x = d()
    assert x.requires_grad
    value = model.log_prob(x, context)
    assert d.to_event(1).event_shape == (3, 2)
    torch.testing.assert_close(d.to_event(1).log_prob(x), value.sum(-1))
    torch.testing.assert_close(d.to_event(2).log_prob(x), value.sum())
    mask = torch.arange(12).reshape(4, 3) % 2 == 0
    torch.testing.assert_close(d.mask(mask).log_prob(x), value.where(mask, 0))
    assert d.expand_by((5,))().shape == (5, 4, 3, 2)
    assert type(d.expand((5, 4, 3))) is type(d)
    with pytest.raises(AttributeError):
        _ = torch_flows.interop.Missing


def test_pyro_plates_and_constrained_sites() -> None:
    prior, observed = UNIT.torch_model(), torch.randn(3, 4, 2).double()
    model, context = CONDITIONAL.torch_model(), tensor(CONDITIONAL.context(3, 4))

    def program():
        pyro.module("prior", prior)
        p = pyro.sample("p", prior.distribution())
        with pyro.plate("columns", 4), pyro.plate("rows", 3):
            shift = pyro.sample("shift", prior.distribution())
            pyro.sample("x", model.distribution(context), obs=observed)
        return p, shift

    pyro.clear_param_store()
    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    p, shift = trace.nodes["p"]["value"], trace.nodes["shift"]["value"]
    assert p.shape == (2,)
    assert shift.shape == (3, 4, 2)
    assert ((shift > 0) & (shift < 1)).all()
    torch.testing.assert_close(trace.nodes["shift"]["log_prob"], prior.log_prob(shift))
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], model.log_prob(observed, context))
    # what Pyro's samplers and automatic guides use: the density of the unconstrained parameters
    _, potential, transforms, _ = pyro.infer.mcmc.util.initialize_model(
        lambda: pyro.sample("p", prior.distribution())
    )
    free = torch.randn(2).double()
    inside = free.sigmoid()
    exact = prior.log_prob(inside) + (inside * (1 - inside)).log().sum()
    torch.testing.assert_close(transforms["p"].inv(free), inside)
    torch.testing.assert_close(potential({"p": free}), -exact)


# NumPyro


def test_numpyro_shapes_and_expansion() -> None:
    _, model, variables = halves(CONDITIONAL)
    context = jnp.asarray(CONDITIONAL.context(4, 1))
    d = model.distribution(variables, context)
    assert repr(d) == "NumPyroDistribution(Flow, batch_shape=(4, 1), event_shape=(2,))"
    mask = np.arange(12).reshape(4, 3) % 2 == 0

    @jax.jit
    def run(d, key):
        e = d.expand((5, 4, 3))
        x, kept = e.sample_with_intermediates(key, (2,))
        return (
            x,
            model.log_prob(variables, x, jnp.broadcast_to(context, (4, 3, 3))),
            (e.log_prob(x), e.log_prob(x, kept)),
            e.to_event(1).log_prob(x),
            e.mask(mask).log_prob(x),
            e.log_prob(x[0, 0, 0, 0]),
        )

    x, exact, values, event, masked, broadcast = run(d, jax.random.key(0))
    assert x.shape == (2, 5, 4, 3, 2)
    assert len(np.unique(x.reshape(-1, 2), axis=0)) == 120
    for value in values:
        close(value, exact, 1e-10)
    close(event, exact.sum(-1))
    close(masked, np.where(mask, exact, 0))
    assert broadcast.shape == (5, 4, 3)
    with pytest.raises(ValueError, match="expects x of shape"):
        d.log_prob(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="Cannot broadcast"):
        d.expand((3, 1))
    for again in (pickle.loads(pickle.dumps(d)), copy.deepcopy(d)):
        assert type(again) is interop.NumPyroDistribution
        jax.tree.map(np.testing.assert_array_equal, again.variables, d.variables)


def test_numpyro_pytrees() -> None:
    """Ensembles by vmap, traced variables, gradients through the distribution."""
    _, model, variables = halves(CONDITIONAL)
    context, x = jnp.asarray(CONDITIONAL.context(4)), jnp.asarray(CONDITIONAL.inputs(4))
    own = model.distribution(variables, context)
    transform = interop.numpyro_transform(model, variables, context)
    base = numpyro_dist.Normal(0.0, 1.0).expand((2,)).to_event(1)
    composed = numpyro_dist.TransformedDistribution(base, transform.inv)
    assert (composed.batch_shape, composed.event_shape) == ((4,), (2,))

    @jax.jit
    def run(own, composed, variables):
        members = jax.vmap(lambda scale: model.distribution(
            jax.tree.map(lambda a: scale * a, variables), context))(jnp.array([1.0, 0.5]))  # fmt: skip
        grads = [jax.grad(lambda d: d.log_prob(x).sum())(d) for d in (own, composed)]
        exact = jax.grad(lambda v: model.log_prob(v, x, context).sum())(variables)
        y, kept = composed.sample_with_intermediates(jax.random.key(0), (3,))
        latent = numpyro_dist.TransformedDistribution(own, composed.transforms[0].inv)
        z, kept_latent = latent.sample_with_intermediates(jax.random.key(0))
        return (
            (jax.vmap(lambda d: d.log_prob(x))(members)[0], model.log_prob(variables, x, context)),
            (grads[0].variables, exact),
            (grads[1].transforms[0].inv.variables["params"], exact["params"]["bijector"]),
            (composed.log_prob(y, kept), model.log_prob(variables, y, context)),
            (latent.log_prob(z, kept_latent), base.log_prob(z)),
        )

    for value, exact in run(own, composed, variables):
        jax.tree.map(lambda a, b: close(a, b, 1e-10), value, exact)
    assert transform.forward_shape((2,)) == (4, 2)
    assert transform.inverse_shape((3, 1, 2)) == (3, 4, 2)
    with pytest.raises(ValueError, match="expects x of shape"):
        transform.forward_shape((3,))
    assert repr(transform) == "NumPyroTransform(Coupling)"


def test_numpyro_transform_of_images() -> None:
    _, model, variables = halves(Case("squeeze", arch("Chain", bijectors=[
        arch("Squeeze"), arch("ActNorm", dim=[4, 2, 2])])))  # fmt: skip
    transform = model.transform(variables)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 4, 4)))
    z = transform(x)
    assert transform.forward_shape(x.shape) == z.shape == (3, 4, 2, 2)
    assert transform.inverse_shape(z.shape) == x.shape
    assert transform.domain.event_dim == transform.codomain.event_dim == 3
    close(transform.log_abs_det_jacobian(x, z), model.forward(variables, x)[1])
    close(transform.inv(z), x)


HEADS, TOSSES = np.array([7.0, 2.0]), 10


def coin_model(model, variables):
    """Coins whose two chances have a flow on (0, 1)^2 as prior."""
    p = numpyro.sample("p", model.distribution(variables))
    numpyro.sample("heads", numpyro_dist.Binomial(TOSSES, p).to_event(1), obs=HEADS)


def coin_log_density(torch_model, p: torch.Tensor) -> torch.Tensor:
    tosses = torch.distributions.Binomial(TOSSES, p).log_prob(tensor(HEADS))
    return torch_model.log_prob(p) + tosses.sum(-1)


def test_numpyro_constrained_sites() -> None:
    torch_model, model, variables = halves(UNIT)
    free = np.random.default_rng(0).normal(size=2)
    value = jax.jit(lambda v, z: numpyro.infer.util.potential_energy(
        coin_model, (model, v), {}, {"p": z}))(variables, free)  # fmt: skip
    p = torch.from_numpy(free).sigmoid()
    exact = coin_log_density(torch_model, p) + (p * (1 - p)).log().sum()
    close(value, -exact.item())


@pytest.mark.slow
def test_numpyro_nuts_with_a_flow_as_prior() -> None:
    """The posterior's moments against quadrature."""
    torch_model, model, variables = halves(UNIT)
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(coin_model), num_warmup=200, num_samples=2000, progress_bar=False
    )
    mcmc.run(jax.random.key(0), model, variables)
    p = mcmc.get_samples()["p"]
    side = (torch.arange(400).double() + 0.5) / 400
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        weight = coin_log_density(torch_model, grid).softmax(0).unsqueeze(-1)
    mean = (weight * grid).sum(0)
    spread = ((weight * grid.square()).sum(0) - mean.square()).sqrt()
    close(p.mean(0), mean, 0.015)
    close(p.std(0), spread, 0.015)


# Distrax


def test_distrax() -> None:
    import distrax

    _, model, variables = halves(CONDITIONAL)
    context = jnp.asarray(CONDITIONAL.context(4))
    d = interop.distrax_distribution(model, variables, context)
    bijector = interop.distrax_bijector(model, variables, context)
    base = distrax.MultivariateNormalDiag(jnp.zeros((4, 2)), jnp.ones((4, 2)))
    same = distrax.Transformed(base, distrax.Inverse(bijector))
    assert (same.batch_shape, same.event_shape) == ((4,), (2,))

    @jax.jit
    def run(d, same, variables):
        x, log_prob = d.sample_and_log_prob(seed=0, sample_shape=(2, 3))
        y, log_prob_y = same.sample_and_log_prob(seed=1, sample_shape=(2, 3))
        members = jax.vmap(lambda scale: interop.distrax_distribution(
            model, jax.tree.map(lambda a: scale * a, variables), context))(jnp.array([1.0, 0.5]))  # fmt: skip
        exact = model.log_prob(variables, x, context)
        return x, (
            (log_prob, exact),
            (d.log_prob(x), exact),
            (same.log_prob(x), exact),
            (log_prob_y, model.log_prob(variables, y, context)),
            (d.sample(seed=0, sample_shape=(2, 3)), x),
            (distrax.Chain([bijector, same.bijector]).forward(y), y),
            (jax.vmap(lambda d: d.log_prob(x))(members)[0], exact),
        )

    x, pairs = run(d, same, variables)
    assert x.shape == (2, 3, 4, 2)
    assert d.dtype == jnp.float64
    for value, exact in pairs:
        close(value, exact, 1e-10)
    assert type(pickle.loads(pickle.dumps(d))) is interop.DistraxDistribution
    with pytest.raises(ValueError, match="expects x of shape"):
        d.log_prob(jnp.zeros(3))
    with pytest.raises(AttributeError):
        _ = interop.DistraxMissing


# the page, and what is not installed


@pytest.mark.slow
def test_documentation_page(tmp_path, monkeypatch) -> None:
    """Every block of the page, in float32 as a user has it; its numbers against exact ones."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 10
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    names: dict = {}
    with jax.enable_x64(False), torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    evidence = names["evidence"].item()
    # SVI with a flow as guide: the bound reaches the evidence of the conjugate model
    assert -0.1 < names["pyro_bound"] - evidence < 0.05
    assert -0.1 < names["numpyro_bound"] - evidence < 0.1
    # NUTS in the latent space of a flow: the exact posterior
    close(names["pyro_draws"].mean(0), names["pyro_mean"], 0.05)
    close(names["pyro_draws"].std(0), torch.linalg.inv(names["precision"]).diag().sqrt(), 0.03)
    # and x0 ~ N(0, 1), x1 ~ N(x0^2, 0.2^2)
    close(names["banana"].mean(0), [0, 1], 0.1)
    close(names["banana"].var(0), [1, 2.04], 0.2)
    assert names["flow_efficiency"] > 3 * names["plain_efficiency"]
    # a chain of BlackJAX on the flow's density
    close(names["draws"].mean(0), names["exact"].mean(0), 0.01)
    close(names["draws"].std(0), names["exact"].std(0), 0.01)


def test_hosts_are_optional() -> None:
    """Without them the rest works, and asking for one says what to install."""
    code = (
        BLOCK.format(blocked=("pyro", "numpyro", "distrax", "blackjax"))
        + """
import torch, jax_flows, torch_flows
from jax_flows import interop
flow = torch_flows.MAF(2, (4,), 1)
assert flow.distribution().sample().shape == (2,)
assert flow.bijector.transform()(torch.zeros(2)).shape == (2,)
twin = jax_flows.MAF(2, (4,), 1)
v = twin.shapes()
for package, ask in (
    ("Pyro", lambda: torch_flows.interop.PyroFlowDistribution),
    ("NumPyro", lambda: twin.distribution(v)),
    ("NumPyro", lambda: interop.numpyro_transform(twin, v)),
    ("Distrax", lambda: interop.distrax_distribution(twin, v)),
    ("Distrax", lambda: interop.distrax_bijector(twin, v)),
):
    try:
        ask()
    except ImportError as error:
        assert f"needs {package}: pip install 'twinflows[hosts]'" in str(error), error
    else:
        raise AssertionError(package)
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

"""Values at the far ends of inputs, weights and arguments, in both halves, against outside figures."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.domains import Interval
from flow_bridge.series import student_t_constant
from flow_bridge.weights import DTYPES, torch_to_jax
from jax_flows.numerics import divide
from parity_tests.catalogue import Case
from torch_flows.checkpoint import to_numpy as from_torch

Arrays = tuple[np.ndarray, ...]

HALVES = ("torch", "jax")


def both(architecture: dict[str, Any], weights: dict[str, Any], dtype: str = "float32") -> Any:
    """``run(half, method, x)``: the outputs of a method and their gradient in x and the weights."""
    weights = {name: np.asarray(value, dtype) for name, value in weights.items()}
    model = torch_flows.build(architecture).to(getattr(torch, dtype)).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    twin = jax_flows.build(architecture)
    variables = torch_to_jax(weights, twin.shapes())

    def run(half: str, method: str, x: Any, gradient: bool = False) -> Arrays:
        x = np.asarray(x, dtype)
        if half == "torch":
            leaf = torch.from_numpy(x).requires_grad_(gradient)
            output = getattr(model, method)(leaf)
            if gradient:
                total = sum(part.sum() for part in output)
                output = torch.autograd.grad(total, [leaf, *model.parameters()])
            return tuple(part.detach().numpy() for part in output)
        function: Callable[..., Any] = getattr(twin, method)
        if gradient:
            function = jax.grad(
                lambda *args: sum(p.sum() for p in getattr(twin, method)(*args)), (1, 0)
            )
        return tuple(np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(function)(variables, x)))

    return run


def arch(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"type": kind, **arguments}


@pytest.mark.parametrize("df", [1e-3, 0.1, 1, 3.5, 30, 1e3, 1e10, 1e12, 1e16, 1e30, 3e38])
def test_student_t(df: float) -> None:
    """The constant cancelled for large df: 1e16 gave a log-density of -19.5 for -1.42."""
    mpmath.mp.dps = 60
    exact = mpmath.loggamma((mpmath.mpf(df) + 1) / 2) - mpmath.loggamma(mpmath.mpf(df) / 2)
    exact -= mpmath.log(mpmath.pi * df) / 2
    if df < 1e25:  # mpmath cancels too
        assert abs(student_t_constant(df) / float(exact) - 1) < 1e-15
    z = np.array([[0.0], [1e-20], [1e-3], [1.0], [-30.0], [1e15], [3e38]])
    falloff = [
        float((mpmath.mpf(df) + 1) / 2 * mpmath.log1p(mpmath.mpf(float(v)) ** 2 / df))
        for v in z.ravel()
    ]
    right = student_t_constant(df) - np.array(falloff)
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-14)):
        values = z.astype(dtype)
        base = torch_flows.StudentT(1, df).to(getattr(torch, dtype))
        twin = jax_flows.StudentT(1, df)
        given = torch.from_numpy(values).requires_grad_()
        found = base.log_prob(given)
        (slope,) = torch.autograd.grad(found.sum(), given)
        slopes = jax.grad(lambda z: twin.log_prob({}, z).sum())(values)  # noqa: B023
        for result in (found.detach().numpy(), twin.log_prob({}, values)):
            with np.errstate(over="ignore"):
                want = right.astype(dtype)
            np.testing.assert_allclose(result, want, rtol=tolerance, atol=tolerance)
        for result in (slope.numpy(), slopes):
            exact_slope = -(df + 1) * z / (df + z**2)
            np.testing.assert_allclose(result, exact_slope, rtol=10 * tolerance, atol=1e-37)
        noise = np.random.default_rng(0).random((500, 2, 1)).astype(dtype)
        samples = base.from_noise(torch.from_numpy(noise)).numpy()
        assert np.isfinite(samples).all()
        np.testing.assert_allclose(
            twin.from_noise({}, noise), samples, rtol=max(300, 30 / df) * tolerance
        )
        if df > 1e16:
            radius = np.sqrt(-2 * np.log1p(-noise[:, 0])) * np.cos(2 * np.pi * noise[:, 1])
            np.testing.assert_allclose(samples, radius, rtol=100 * tolerance, atol=tolerance)


@pytest.mark.parametrize("p", [3.0, 80.0, 200.0])
def test_determinants_that_underflow(p: float) -> None:
    """Sylvester at opposite weights p and -p: a slope of 4 e^(-2p) at 0, which float32 does not hold."""
    weights = {"householder": [[1.0]], "factors": [[-p, p]], "b": [0.0]}
    run = both(arch("Sylvester", dim=1, rank=1), weights)
    x = np.array([[0.0], [1e-20], [1e-3], [0.5], [-2.0]])
    mpmath.mp.dps = 500
    s = 1 / mpmath.cosh(p) ** 2
    tanh2 = [mpmath.tanh(mpmath.tanh(p) * mpmath.mpf(float(v))) ** 2 for v in x.ravel()]
    right = [float(mpmath.log(s * (1 - t) + t)) for t in tanh2]
    for half in HALVES:
        z, log_det = run(half, "forward", x)
        np.testing.assert_allclose(log_det, right, rtol=1e-5)
        back, inverse_log_det = run(half, "inverse", z[[0, 3, 4]])
        np.testing.assert_allclose(back, x[[0, 3, 4]], rtol=1e-5)
        np.testing.assert_allclose(inverse_log_det, -log_det[[0, 3, 4]], rtol=1e-5)
        for method in ("forward", "inverse"):
            assert all(np.isfinite(g).all() for g in run(half, method, x, gradient=True))


def test_planar_gradients_at_a_flat_point() -> None:
    """w.u = -60: the slope of the inverse at 0 is e^60; in JAX its gradient was NaN."""
    run = both(arch("Planar", dim=1), {"w": [1.0], "u": [-60.0], "b": 0.0})
    for half in HALVES:
        gradient = run(half, "inverse", [[0.0]], gradient=True)[0]
        np.testing.assert_allclose(gradient, np.exp(60.0), rtol=1e-4)


def test_tanh_at_the_ends() -> None:
    for half in HALVES:
        run = both(arch("Tanh"), {})
        z, log_det = run(half, "forward", [[-np.inf], [np.inf], [-50.0], [50.0]])
        assert z.ravel().tolist() == [-1, 1, -1, 1]
        np.testing.assert_allclose(
            log_det, [-np.inf, -np.inf, 2 * np.log(2) - 100, 2 * np.log(2) - 100]
        )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: m.BatchNorm(2, momentum=5.0), "momentum above 0 and at most 1, got 5.0"),
        (lambda m: m.BatchNorm(2, eps=5.0), "eps between 0 and 1, got 5.0"),
        (lambda m: m.ContinuousBijector(2, atol=1.0), "atol between 0 and 1, got 1.0"),
        (lambda m: m.ContinuousBijector(2, adjoint=1), "adjoint as True or False, got 1"),
        (lambda m: m.LULinear(2, bias=0), "bias as True or False, got 0"),
        (lambda m: m.InvertibleResidual(2, eval_terms=3), 'eval_terms with log_det="series" only'),
        (lambda m: m.StudentT(1, 1e39), "df to be a number above 0 that float32 holds, got 1e"),
        (lambda m: m.LeakyReLU(1e-40), "negative_slope to be a number above 0 that float32 holds"),
        (lambda m: m.Uniform(1, -3e38, 3e38), "apart by no more than float32 holds"),
        (lambda m: m.SplineCoupling(2, tail_bound=1e39), "tail_bound to be a number above 0 that"),
        (lambda m: m.SplineCoupling(2, tail_bound=1e30), "apart by 1e-15 to 1e15, got -1e+30"),
    ],
)
def test_arguments(build: Callable[[Any], Any], message: str) -> None:
    sentences = []
    for module in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match=r"\w+ (expects|takes) ") as error:
            build(module)
        sentences.append(str(error.value))
    assert message in sentences[0]
    assert sentences[0] == sentences[1]


def products(jaxpr: Any) -> Iterator[Any]:
    """Every product of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize(
    "architecture",
    [
        arch("InvertibleResidual", dim=2, hidden_dims=[3], log_det="series", context_dim=1),
        arch("Sylvester", dim=3, rank=2, context_dim=1),
        arch("ContinuousBijector", dim=2, hidden_dims=[3], solver="rk4", num_steps=2),
        arch("Rotation", dim=3),
        arch("Glow", shape=[1, 4, 4], num_levels=1, num_steps=1, hidden_channels=2),
        arch("MAF", dim=2, hidden_dims=[3], num_layers=1),
        arch("RealNVP", dim=3, hidden_dims=[3, 3], num_layers=1),
    ],
    ids=lambda architecture: architecture["type"],
)
def test_products_state_their_precision(architecture: dict[str, Any]) -> None:
    """In training, inverse and gradients, so that no platform rounds a factor to bfloat16."""
    model, case = jax_flows.build(architecture), Case("row", architecture)
    variables, x, context = model.shapes(), case.inputs(4), case.context(4)
    bijector = getattr(model, "bijector", model)
    own = (
        {k: v.get("bijector", v) for k, v in variables.items()}
        if bijector is not model
        else variables
    )

    def training(own: Any, x: Any) -> Any:
        return bijector.forward_and_update(own, x, context)[1].sum()

    def inverse(own: Any, x: Any) -> Any:
        return sum(part.sum() for part in bijector.inverse(own, x, context))

    x = np.asarray(x, np.float32)
    context = None if context is None else context.astype(np.float32)
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), own)
    found = [
        equation
        for function in (training, inverse)
        for equation in products(jax.make_jaxpr(jax.grad(function, allow_int=True))(own, x).jaxpr)
    ]
    assert found
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert [e for e in found if e.params["precision"] != highest] == []


def logit_normal(module: Any) -> Any:
    return module.Flow(module.Logit(alpha=0.0, event_ndim=1), module.StandardNormal(1))


def squashed(module: Any) -> Any:
    parts = [module.Invert(module.Tanh()), module.Affine(1)]
    return module.Flow(module.Chain(parts), module.StandardNormal(1))


def shifted(module: Any) -> Any:
    """The domain of its second member shows in values only."""
    parts = [module.Affine(1), module.Invert(module.Exp())]
    inverted = module.Invert(module.Invert(module.Chain(parts)))
    return module.Flow(inverted, module.StandardNormal(1))


def scores(make: Callable[[Any], Any], x: Any) -> list[np.ndarray]:
    """log_prob of both halves, the second one compiled, and their gradients in x."""
    x = np.asarray(x, np.float32)
    flow, twin = make(torch_flows).eval(), make(jax_flows)
    weights = {k: np.zeros(v.shape, np.float32) for k, v in flow.state_dict().items()}
    flow.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    variables = torch_to_jax(weights, twin.shapes())
    given = torch.from_numpy(x).requires_grad_()
    log_prob = flow.log_prob(given)
    (gradient,) = torch.autograd.grad(log_prob.sum(), given)

    def value(x: Any) -> Any:
        log_prob = twin.log_prob(variables, x)
        return log_prob.sum(), log_prob

    twin_gradient, twin_log_prob = jax.jit(jax.grad(value, has_aux=True))(x)
    arrays = log_prob.detach().numpy(), twin_log_prob, gradient.numpy(), twin_gradient
    return [np.asarray(array) for array in arrays]


def test_log_prob_outside_the_domain() -> None:
    """-inf at the ends and beyond, with the gradient 0; NaN of NaN; the density inside."""
    outside = [[0.0], [1.0], [1.5], [-np.inf], [np.inf]]
    for make in (logit_normal, shifted):
        x = np.array([*outside, [np.nan], [0.3]])
        if make is shifted:
            x = np.array([[0.0], [-1.0], [-np.inf], [np.inf], [np.nan], [0.3]])
        a, b, gradient, twin_gradient = scores(make, x)
        slope = 1 / (0.3 * 0.7) if make is logit_normal else 1 / 0.3
        z = np.log(0.3 / 0.7) if make is logit_normal else np.log(0.3)
        right = [-np.inf] * (len(x) - 2) + [
            np.nan,
            np.log(slope) - z**2 / 2 - np.log(2 * np.pi) / 2,
        ]
        for found in (a, b):
            np.testing.assert_allclose(found, right, rtol=1e-5)
        if make is logit_normal:
            assert gradient[:5].tolist() == twin_gradient[:5].tolist() == [[0.0]] * 5
    everywhere = [[-np.inf, 0.0], [np.inf, -np.inf], [np.nan, np.inf], [1.0, 2.0]]
    a, b, *_ = scores(lambda m: m.Flow(m.Planar(2), m.StandardNormal(2)), everywhere)
    for found in (a, b):
        assert found[:2].tolist() == [-np.inf] * 2
        assert np.isnan(found[2])
        assert np.isfinite(found[3])


def blocks(half: Any) -> Any:
    """Entries in (0, inf) and in (-1, 1), through float32 noise that reaches the ends of the second."""
    members = [half.Invert(half.Exp()), half.Chain([half.Invert(half.Tanh()), half.Affine(1)])]
    bijector = half.Chain([half.Blockwise(members, [[1], [0]]), half.Affine(2)])
    return half.Flow(bijector, half.StandardNormal(2))


def test_blocks_outside_of_their_intervals() -> None:
    """-inf with the gradient 0, a NaN in any column NaN, and samples inside."""
    flow, twin = blocks(torch_flows), blocks(jax_flows)
    flow.bijector.bijectors[0].bijectors[1].bijectors[1].log_scale.data.fill_(-np.log(10.0))
    variables = torch_to_jax(
        {name: value.numpy() for name, value in flow.state_dict().items()}, twin.shapes()
    )
    rows = np.array(
        [[0.5, 2.0], [0.5, -1.0], [1.0, 1.0], [-3.0, 0.0], [np.nan, -1.0], [3.0, np.nan]],
        np.float32,
    )
    x = torch.tensor(rows[:4], requires_grad=True)
    gradients = torch.autograd.grad(flow.log_prob(x).sum(), [x, *flow.parameters()])
    in_jax = jax.grad(lambda v, x: twin.log_prob(v, x).sum(), (0, 1))(variables, rows[:4])
    log_prob = flow.log_prob(torch.tensor(rows)).detach().numpy()
    for found in (log_prob, np.array(twin.log_prob(variables, rows))):
        assert np.isfinite(found[0])
        assert found[1:4].tolist() == [-np.inf] * 3
        assert np.isnan(found[4:]).all()
    for gradient in (gradients[0], in_jax[1]):
        assert not np.asarray(gradient)[1:4].any()
    assert all(bool(g.isfinite().all()) for g in gradients[1:])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(in_jax[0]))
    samples = flow.sample(5_000, generator=torch.Generator().manual_seed(0))
    twin_samples = twin.sample(variables, jax.random.key(0), 5_000)
    assert bool(flow.log_prob(samples).isfinite().all())
    assert np.isfinite(twin.log_prob(variables, twin_samples)).all()


@pytest.mark.parametrize("log_scale", [-np.log(3.0), -np.log(10.0)])
def test_own_samples_have_a_density(log_scale: float) -> None:
    """0.3 % and 0.8 % of the float32 samples rounded to the ends of (-1, 1), and were scored NaN."""
    flow, twin = squashed(torch_flows), squashed(jax_flows)
    flow.bijector.bijectors[1].log_scale.data.fill_(log_scale)
    variables = torch_to_jax(
        {name: value.numpy() for name, value in flow.state_dict().items()}, twin.shapes()
    )
    x, log_prob = flow.sample_and_log_prob(20_000, generator=torch.Generator().manual_seed(0))
    twin_x, twin_log_prob = twin.sample_and_log_prob(variables, jax.random.key(0), 20_000)
    for samples, density in (
        (x.detach().numpy(), log_prob.detach().numpy()),
        (twin_x, twin_log_prob),
    ):
        assert abs(samples).max() < 1
        assert np.isfinite(density).all()
        assert np.isfinite(
            flow.log_prob(torch.from_numpy(np.array(samples))).detach().numpy()
        ).all()
        assert np.isfinite(twin.log_prob(variables, np.array(samples))).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "ends", [(0, 1), (-0.1, np.inf), (-np.inf, 1 / 3), (-1 / 3, 0), (0, np.inf)]
)
def test_ends_of_an_interval(dtype: str, ends: tuple[float, float]) -> None:
    interval = Interval(*ends)
    kind = DTYPES[dtype]
    low, high = interval.ends(dtype)
    assert interval.low < low < interval.middle < high < interval.high
    for end, towards in ((low, -np.inf), (high, np.inf)):
        assert float(kind.type(end)) == end
        with np.errstate(over="ignore"):
            beyond = float(np.nextafter(kind.type(end), kind.type(towards)))
        assert not interval.low < beyond < interval.high or abs(end) == float(
            ml_dtypes.finfo(kind).tiny
        )


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e20, 1e30])
def test_radial_gradients_far_out(size: float) -> None:
    """From 2e19 on, JAX's gradient was 2 where the map is a translation: the square of r overflowed."""
    weights = {"center": [0.0, 0.0], "raw_alpha": 0.3, "raw_s": -1.0}
    run = both(arch("Radial", dim=2), weights)
    exact = both(arch("Radial", dim=2), weights, "float64")
    for method in ("forward", "inverse"):
        x = [[size, -size]]
        right = exact("torch", method, x, gradient=True)[0]
        for half in HALVES:
            found = run(half, method, x, gradient=True)[0]
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


def test_quotients() -> None:
    """As JAX's own where that is right, to the second derivative, compiled and mapped."""
    a, b = jnp.array([1.5, -2.0]), jnp.array([0.7, -3.0])

    def derivatives(quotient: Any) -> Any:
        total = jax.hessian(lambda a, b: quotient(a, b).sum(), (0, 1))
        return jax.jit(total)(a, b), jax.vmap(jax.grad(quotient, (0, 1)))(a, b)

    ours, theirs = derivatives(divide), derivatives(jnp.divide)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


LOW = {
    "Rotation": arch("Rotation", dim=3),
    "LULinear": arch("LULinear", dim=2),
    "Sylvester": arch("Sylvester", dim=2, rank=2),
    "InvertibleResidual": arch("InvertibleResidual", dim=3, hidden_dims=[3]),
    "series": arch("InvertibleResidual", dim=2, hidden_dims=[3], log_det="series"),
    "dopri5": arch("ContinuousBijector", dim=2, hidden_dims=[3]),
    "hutchinson": arch("ContinuousBijector", dim=2, hidden_dims=[3], trace="hutchinson",
                       probe="gaussian", solver="rk4", num_steps=2),
    "GaussianMixture": arch("Flow", bijector=arch("Affine", dim=2),
                            base=arch("GaussianMixture", dim=2, num_components=2)),
}  # fmt: skip


@pytest.mark.usefixtures("quick_jax")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LOW)
def test_low_precision(name: str, dtype: str) -> None:
    """No kernel of PyTorch or JAX is missing, and all is right to a few eps of the dtype."""
    case, kind = Case("row", LOW[name]), getattr(torch, dtype)
    model = case.torch_model("float32").to(kind).eval()
    exact = torch_flows.build(case.architecture).double().eval()
    exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    twin = jax_flows.build(case.architecture)
    weights = {k: from_torch(v) for k, v in model.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, torch_to_jax(weights, twin.shapes()))
    x = torch.from_numpy(case.inputs(3)).to(kind)
    eps, dim = torch.finfo(kind).eps, x.shape[-1]
    for method in ("forward", "inverse"):
        right = getattr(exact, method)(x.double())
        found = getattr(model, method)(x)
        twins = jax.jit(getattr(twin, method))(variables, from_torch(x))
        for want, ours, theirs in zip(right, found, twins, strict=True):
            want = want.detach().numpy()
            assert ours.dtype == kind
            assert theirs.dtype.name == dtype
            for value in (ours.detach().double().numpy(), np.asarray(theirs, np.float64)):
                np.testing.assert_allclose(value, want, atol=8 * dim * eps * (1 + abs(want).max()))
    z, log_det = model.train().forward(x)
    (z.float().sum() + log_det.float().sum()).backward()
    if name != "Rotation":
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    twins = jax.jit(twin.forward_and_update)(variables, from_torch(x))
    for a, b in ((z, twins[0]), (log_det, twins[1])):
        a = a.detach().double().numpy()
        np.testing.assert_allclose(a, np.asarray(b, np.float64), atol=16 * eps * (1 + abs(a).max()))
    if name == "GaussianMixture":
        assert model.sample(5).dtype == kind
        assert twin.sample(variables, jax.random.key(0), 5).dtype.name == dtype


def test_float32_weights_where_float64_is_enabled() -> None:
    """The gradient in the weights of a continuous flow raised a TypeError in JAX."""
    flow = jax_flows.ContinuousBijector(2, (3,))
    variables = flow.init(jax.random.key(0), "float32")
    gradient = jax.grad(lambda v: flow.forward(v, np.ones((2, 2), np.float32))[1].sum())(variables)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}


def test_tanh_saturates_at_the_same_point() -> None:
    """XLA's tanh is 1 from 8.0 on in float32, where PyTorch's has 1 - 2e-7 until 9.02."""
    x = np.linspace(-9.5, 9.5, 2001, dtype=np.float32)[:, None]
    right = np.tanh(x.astype(np.float64))
    for half in HALVES:
        z, _ = both(arch("Tanh"), {})(half, "forward", x)
        np.testing.assert_allclose(z, right, rtol=4e-7)
        assert (abs(z) == 1).any()
        np.testing.assert_array_equal(abs(z) == 1, abs(x) >= abs(x)[abs(z) == 1].min())
        assert 9.0 < abs(x)[abs(z) == 1].min() < 9.03


def test_saturation_is_not_cancelled() -> None:
    """XLA took log(exp(x)) for x, also where exp overflows."""
    architecture = arch("Chain", bijectors=[arch("Exp"), arch("Invert", bijector=arch("Exp"))])
    x = np.array([[100.0], [-200.0], [3.0]])
    for half in HALVES:
        z, log_det = both(architecture, {})(half, "forward", x)
        np.testing.assert_allclose(z.ravel(), [np.inf, -np.inf, 3.0], rtol=1e-6)
        np.testing.assert_allclose(log_det, [-np.inf, np.inf, 0.0], atol=1e-6)


def test_derivatives_of_an_absolute_value_at_0() -> None:
    """The log-slope of Softclip, and the curvature where softclipped scales and squashed slopes start."""
    zero = torch.zeros((), dtype=torch.float64)
    slope = torch.func.grad(lambda x: torch_flows.Softclip().forward(x[None])[1])(zero)
    in_jax = jax.grad(lambda x: jax_flows.Softclip().forward({}, x[None])[1])(0.0)
    assert float(slope) == float(in_jax) == 0

    def curvature(half: Any, hessian: Any, array: Any, **options: Any) -> float:
        name = "SplineMap" if "squash" in options else "AffineMap"
        univariate = getattr(half, name)(**options)
        x, raw = array(0.3), array(np.zeros(univariate.num_parameters))
        return float(np.asarray(hessian(lambda p: univariate.forward(x, p)[1])(raw))[-1, -1])

    for options in (
        {"scale": "softclip"},
        {"num_bins": 2, "low": -1.0, "high": 1.0, "squash": 0.1},
    ):
        found = curvature(
            torch_flows, torch.func.hessian, partial(torch.tensor, dtype=torch.float64), **options
        )
        other = curvature(jax_flows, jax.hessian, jnp.asarray, **options)
        assert found == pytest.approx(other, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    "architecture", [arch("LeakyReLU", negative_slope=0.1), arch("ELU", alpha=0.5)]
)
def test_kinks(architecture: dict[str, Any]) -> None:
    """0 is on the side of slope 1 in both directions, and x and z are on the same side."""
    x = np.array([[0.0], [-0.0], [1e-30], [-1e-30], [-1e-3], [2.0]])
    slope = np.log(architecture.get("negative_slope", 0.5))
    for half in HALVES:
        run = both(architecture, {})
        z, log_det = run(half, "forward", x)
        back, inverse_log_det = run(half, "inverse", z)
        np.testing.assert_allclose(back, x, rtol=1e-4)
        np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-4)
        np.testing.assert_allclose(log_det, [0, 0, 0, slope, slope, 0], atol=2e-3)


@pytest.mark.parametrize("kind", ["ResidualFlow", "MAF", "Glow", "RealNVP", "NeuralSplineFlow"])
def test_everything_is_on_the_default_device(kind: str) -> None:
    """Parameters and buffers: orders and thresholds stayed on the CPU."""
    small = (
        {"shape": [2, 2, 2], "num_levels": 1, "hidden_channels": 2}
        if kind == "Glow"
        else {"dim": 3}
    )
    series = {"log_det": "series", "num_blocks": 1} if kind == "ResidualFlow" else {}
    with torch.device("meta"):
        model = getattr(torch_flows, kind)(**small, **series)
        mixed = torch_flows.Chain(
            [torch_flows.Permutation([2, 0, 1]), torch_flows.AffineCoupling(3, mask=[1, 0, 1])]
        )
    for module in (model, mixed):
        assert {t.device.type for t in [*module.parameters(), *module.buffers()]} == {"meta"}


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian])
@pytest.mark.parametrize(
    "build", [lambda: torch_flows.Planar(2), lambda: torch_flows.Sylvester(2, 2)]
)
def test_forward_mode_of_one_row(transform: Any, build: Any) -> None:
    """PyTorch makes float64 of a float32 scalar in forward mode; Sylvester's inverse raised."""
    model, z = build(), torch.tensor([0.3, -0.2])
    found = transform(lambda z: model.inverse(z)[0])(z)
    assert found.dtype == torch.float32
    right = torch.func.jacrev(lambda z: model.inverse(z)[0])(z)
    if transform is torch.func.jacfwd:
        torch.testing.assert_close(found, right)


def test_a_closed_domain_has_its_ends() -> None:
    """A bounded spline has a slope there, and the density of its samples at 0 and 1 is finite."""
    for module in (torch_flows, jax_flows):
        map = module.SplineMap(num_bins=2, low=0.0, high=1.0, boundary="bounded")
        flow = module.Flow(module.Elementwise(1, map), module.Uniform(1))
        x = np.array([[0.0], [1.0], [0.5], [-0.1], [1.1]], np.float32)
        if module is torch_flows:
            found = flow.log_prob(torch.from_numpy(x)).detach().numpy()
        else:
            found = np.asarray(flow.log_prob(flow.init(jax.random.key(0), "float32"), x))
        np.testing.assert_allclose(found, [0, 0, 0, -np.inf, -np.inf], atol=1e-6)


def test_constants_that_float16_does_not_hold() -> None:
    x = np.full((2, 2), 0.5, np.float16)
    cases = {
        "Uniform has low=-100000.0": lambda m: m.Uniform(2, -1e5, 1e5),
        "ELU has alpha=100000.0": lambda m: m.ELU(1e5),
        "SplineMap has low=-100000.0": lambda m: m.SplineCoupling(2, (3,), tail_bound=1e5),
    }
    for message, build in cases.items():
        message = rf"{message}, which float16 does not hold\."
        model, twin = build(torch_flows).half(), build(jax_flows)
        variables = twin.init(jax.random.key(0), "float16")
        method = "log_prob" if hasattr(model, "log_prob") else "forward"
        with pytest.raises(ValueError, match=message):
            getattr(model, method)(torch.from_numpy(x))
        with pytest.raises(ValueError, match=message):
            getattr(twin, method)(variables, x)


def test_float64_weights_are_not_rounded() -> None:
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(TypeError, match="Planar cannot have float64 weights"):
            jax_flows.Planar(2).init(jax.random.key(0), "float64")
    finally:
        jax.config.update("jax_enable_x64", True)


def test_bounded_flows_compile() -> None:
    """Sampling too, whole: what clamps samples into the domain is plain Python."""
    flow = squashed(torch_flows).eval()
    sample = torch.compile(lambda: flow.sample_and_log_prob(5), fullgraph=True, backend="eager")
    x, log_prob = sample()
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jax_flows.AffineCoupling(5, (4,), [1, 0, 0, 1, 1]),
        lambda: jax_flows.Permutation([2, 0, 1, 4, 3]),
        lambda: jax_flows.LULinear(5, permutation=[2, 0, 1, 4, 3]),
    ],
)
def test_what_ran_in_64_bit_mode_runs_in_32(make: Any) -> None:
    """JAX keeps what it took an array for."""
    bijector = make()
    x = np.ones((1, 5))
    variables = bijector.init(jax.random.key(0), np.float64)
    jax.jit(bijector.forward)(variables, x)
    with jax.enable_x64(False):
        narrow = jax.tree.map(lambda a: jnp.asarray(a, "float32"), variables)
        z, _ = bijector.forward(narrow, jnp.asarray(x, "float32"))
        assert bijector.inverse(narrow, z)[0].dtype == jnp.float32

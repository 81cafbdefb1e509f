"""The JAX contenders: ours, the libraries people use, and the floor.

Each builds the model of a row with the same conditioner sizes and ReLU; all are jitted alike, train
with ``optax.adam`` and donate weights and optimiser state. A library is imported when it is built.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks.published_jax import START, Flow
from benchmarks.rows import Place, Row

LEARNING_RATE = 1e-5
OPS = ("log_prob", "train", "sample", "forward", "inverse")


def enter(place: Place) -> AbstractContextManager[Any]:
    """In what contenders are built; the precision is in force from now on."""
    if place.device == "gpu":
        jax.config.update("jax_default_matmul_precision", place.precision)
    return nullcontext()


def finish() -> None:
    """Every job waits for its own result."""


def peak_of_gpu(job: Callable[[], object]) -> int:
    """Bytes of arrays at the peak of the process, a job being the last that it does."""
    job()
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def init_mlp(key: Array, in_dim: int, hidden_dims: tuple[int, ...], out_dim: int) -> list[Any]:
    """Weights of the conditioner for libraries that take any function."""
    layers = []
    for width_in, width_out in pairwise((in_dim, *hidden_dims, out_dim)):
        key, weight_key, bias_key = jax.random.split(key, 3)
        bound = width_in**-0.5
        layers.append(
            {
                "w": jax.random.uniform(
                    weight_key, (width_in, width_out), jnp.float32, -bound, bound
                ),
                "b": jax.random.uniform(bias_key, (width_out,), jnp.float32, -bound, bound),
            }
        )
    return layers


def apply_mlp(layers: list[Any], x: Array) -> Array:
    """The conditioner for libraries that take any function."""
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


class Contender:
    """A library's form of a row: a method named as ``row.model`` builds it, the others run it.

    The building method sets ``params`` and whatever else the pure methods need; these take the
    parameters first.
    """

    name: ClassVar[str]
    requires: ClassVar[str]
    params: Any

    def __init__(self, row: Row) -> None:
        self.row = row
        getattr(self, row.model)(row)
        self.optimizer = optax.adam(LEARNING_RATE)
        self.opt_state = self.optimizer.init(self.params)
        self.x = jax.random.normal(jax.random.key(0), (row.batch, *row.event_shape))
        self.as_sampled = jax.random.normal(jax.random.key(2), (row.samples, *row.event_shape))
        shape = (row.batch, row.context_dim)
        self.context = jax.random.normal(jax.random.key(3), shape) if row.context_dim else None
        self.step = jax.jit(self.train_step, donate_argnums=(0, 1))

    def given(self, x: Array) -> Array | None:
        """The contexts of the first rows."""
        return None if self.context is None else self.context[: len(x)]

    @property
    def num_parameters(self) -> int:
        """The number of trainable numbers."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def log_prob(self, params: Any, x: Array) -> Array:
        raise NotImplementedError

    def forward(self, params: Any, x: Array) -> Array:
        """Data to latent."""
        raise NotImplementedError

    def inverse(self, params: Any, z: Array) -> Array:
        """Latent to data."""
        raise NotImplementedError

    def sample(self, params: Any, key: Array) -> Array:
        """As many samples as the row asks for."""
        raise NotImplementedError

    def evaluations(self) -> int | None:
        """How often ``log_prob`` evaluates the network of a differential equation."""
        return None

    def train_step(self, params: Any, opt_state: Any, x: Array) -> tuple[Any, Any]:
        """One step of maximum likelihood."""
        grads = jax.grad(lambda params: -self.log_prob(params, x).mean())(params)
        updates, opt_state = self.optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    def job(self, op: str) -> Callable[[], object]:
        """What is timed for an operation, without arguments, finished when it returns."""
        if op == "train":
            # The steps donate their arguments: the other operations keep arrays of their own.
            state = jax.tree.map(jnp.copy, (self.params, self.opt_state))

            def train() -> None:
                nonlocal state
                state = self.step(*state, self.x)
                jax.block_until_ready(state)

            return train
        function = jax.jit(getattr(self, op))
        arguments = {"sample": jax.random.key(1), "forward": self.as_sampled}
        argument = arguments.get(op, self.x)
        return lambda: function(self.params, argument).block_until_ready()

    def check(self) -> tuple[float, float]:
        """Errors of the round trip and of the log-density against the autodiff Jacobian of one row."""

        @jax.jit
        def errors(params: Any, x: Array) -> tuple[Array, Array]:
            try:
                round_trip = jnp.abs(self.inverse(params, self.forward(params, x)) - x).max()
            except NotImplementedError:  # without an inverse
                round_trip = jnp.zeros(())
            row = x[:1]
            jacobian = jax.jacrev(lambda row: self.forward(params, row))(row)
            log_det = jnp.linalg.slogdet(jacobian.reshape(row.size, row.size)).logabsdet
            z = self.forward(params, row)
            log_normal = -jnp.square(z).sum() / 2 - row.size * math.log(2 * math.pi) / 2
            log_prob = self.log_prob(params, row).squeeze()
            return round_trip, jnp.abs(log_normal + log_det - log_prob)

        round_trip, density = errors(self.params, self.x)
        return float(round_trip), float(density)


class Twinflows(Contender):
    name, requires = "twinflows", "jax_flows"
    flow: Any

    def realnvp(self, row: Row) -> None:
        from jax_flows import AffineCoupling, Chain, Flow, StandardNormal

        layers = [
            AffineCoupling(
                row.dim,
                row.hidden_dims,
                ("even", "odd")[i % 2],
                activation="relu",
                separate_networks=False,
            )
            for i in range(row.layers)
        ]
        self.init(Flow(Chain(layers), StandardNormal(row.dim)))

    def spline(self, row: Row) -> None:
        from jax_flows import Chain, Flow, SplineCoupling, StandardNormal

        layers = [
            SplineCoupling(
                row.dim,
                row.hidden_dims,
                ("even", "odd")[i % 2],
                activation="relu",
                **row.options,
            )
            for i in range(row.layers)
        ]
        self.init(Flow(Chain(layers), StandardNormal(row.dim)))

    def continuous(self, row: Row) -> None:
        from jax_flows import ContinuousBijector, Flow, StandardNormal

        tolerance = row.options["tolerances"][self.name]
        bijector = ContinuousBijector(row.dim, row.hidden_dims, rtol=tolerance, atol=tolerance)
        self.init(Flow(bijector, StandardNormal(row.dim)))
        self.params = jax.tree.map(lambda leaf: row.options["growth"] * leaf, self.params)

    matching = continuous

    def train_step(self, params: Any, opt_state: Any, x: Array) -> tuple[Any, Any]:
        """In training mode, as our ``fit``."""

        def mean(params: Any) -> Array:
            variables = self.variables(params)
            if self.row.model == "matching":
                from jax_flows import FlowMatching

                return FlowMatching()(self.flow, variables, x, None, *self.noise).mean()
            return -self.flow.log_prob_and_update(variables, x, self.context)[0].mean()

        updates, opt_state = self.optimizer.update(jax.grad(mean)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    @property
    def noise(self) -> list[Array]:
        """What the loss draws; ``fit`` does so on the host, before the step."""
        from jax_flows import FlowMatching

        drawn = FlowMatching().draw(self.flow, np.random.default_rng(0), self.row.batch)
        return [jnp.asarray(array, self.x.dtype) for array in drawn]

    def evaluations(self) -> int | None:
        if self.row.model not in ("continuous", "matching"):
            return None
        bijector = {"params": self.params["bijector"]}
        return int(self.flow.bijector.count_evaluations(bijector, self.x))

    def residual(self, row: Row) -> None:
        from jax_flows import Chain, Flow, InvertibleResidual, StandardNormal

        layers = [InvertibleResidual(row.dim, row.hidden_dims, 0.9) for _ in range(row.layers)]
        self.init(Flow(Chain(layers), StandardNormal(row.dim)))
        self.params = jax.tree.map(lambda leaf: row.options["growth"] * leaf, self.params)

    def planar(self, row: Row) -> None:
        from jax_flows import PlanarFlow

        self.init(PlanarFlow(row.dim, row.layers))

    def radial(self, row: Row) -> None:
        from jax_flows import RadialFlow

        self.init(RadialFlow(row.dim, row.layers))

    def sylvester(self, row: Row) -> None:
        from jax_flows import SylvesterFlow

        self.init(SylvesterFlow(row.dim, row.layers))

    def maf(self, row: Row) -> None:
        from jax_flows import Chain, Flow, MaskedAffineAutoregressive, StandardNormal

        layers = [
            MaskedAffineAutoregressive(
                row.dim, row.hidden_dims, (None, "reverse")[i % 2], activation="relu"
            )
            for i in range(row.layers)
        ]
        self.init(Flow(Chain(layers), StandardNormal(row.dim)))

    def conditional(self, row: Row) -> None:
        from jax_flows import MAF

        given: dict[str, Any] = {"context_dim": row.context_dim, "activation": "relu"}
        self.init(MAF(row.dim, row.hidden_dims, row.layers, **given))

    def maf_of_flowjax(self, row: Row) -> None:
        from jax_flows import import_flow

        self.flow, variables = import_flow(Flowjax.build_maf(row))
        self.params, self.batch_stats = variables["params"], variables["batch_stats"]

    def sospf(self, row: Row) -> None:
        from jax_flows import SumOfSquaresMap

        self.masked(row, SumOfSquaresMap(4, 3, 10.0, outside="polynomial"))

    def gf(self, row: Row) -> None:
        from jax_flows import Chain, Elementwise, Flow, NormalMixtureMap, Rotation, StandardNormal

        layers = [Elementwise(row.dim, NormalMixtureMap()), Rotation(row.dim)] * row.layers
        self.init(Flow(Chain(tuple(layers[:-1])), StandardNormal(row.dim)))

    def naf(self, row: Row) -> None:
        from jax_flows import NAF

        self.init(NAF(row.dim, row.hidden_dims, row.layers, activation="relu"))

    def unaf(self, row: Row) -> None:
        from jax_flows import IntegratedNetworkMap

        self.masked(row, IntegratedNetworkMap())

    def bpf(self, row: Row) -> None:
        from jax_flows import BernsteinMap

        self.masked(row, BernsteinMap(16))

    def bnaf(self, row: Row) -> None:
        from jax_flows import import_flow

        self.flow, variables = import_flow(Flowjax.build_bnaf(row), check=False)
        self.params, self.batch_stats = variables["params"], variables.get("batch_stats", {})

    def masked(self, row: Row, map: Any) -> None:
        """Masked autoregressive maps, their orders reversed by turns."""
        from jax_flows import MLP, Chain, Flow, MaskedAutoregressive, Network, StandardNormal

        network = Network(MLP, hidden_dims=row.hidden_dims, activation="relu")
        orders = [(None, "reverse")[i % 2] for i in range(row.layers)]
        layers = [MaskedAutoregressive(row.dim, map, network, order) for order in orders]
        self.init(Flow(Chain(tuple(layers)), StandardNormal(row.dim)))

    def glow(self, row: Row) -> None:
        from jax_flows import Glow

        self.init(Glow(row.event_shape, row.options["levels"], row.layers, row.hidden_dims[0]))

    def tarflow(self, row: Row) -> None:
        from jax_flows import AffineMap, TarFlow

        self.init(
            TarFlow(
                row.event_shape,
                num_layers=row.layers,
                hidden_dim=row.hidden_dims[0],
                map=AffineMap("exp", order="shift_divide"),
                initial_scale=START,
                **row.options,
            )
        )

    def jet(self, row: Row) -> None:
        from jax_flows import Jet

        self.init(
            Jet(
                row.event_shape,
                num_layers=row.layers,
                hidden_dim=row.hidden_dims[0],
                initial_scale=START,
                **row.options,
            )
        )

    def init(self, flow: Any) -> None:
        """Fresh weights for a flow; what is not trained stays out of ``params``."""
        self.flow = flow
        variables = flow.init(jax.random.key(0))
        self.params, self.batch_stats = variables["params"], variables["batch_stats"]

    def variables(self, params: Any) -> dict[str, Any]:
        return {"params": params, "batch_stats": self.batch_stats}

    def log_prob(self, params: Any, x: Array) -> Array:
        return self.flow.log_prob(self.variables(params), x, self.given(x))

    def forward(self, params: Any, x: Array) -> Array:
        return self.flow.forward(self.variables(params), x, self.given(x))[0]

    def inverse(self, params: Any, z: Array) -> Array:
        return self.flow.inverse(self.variables(params), z, self.given(z))[0]

    def sample(self, params: Any, key: Array) -> Array:
        if self.context is not None:
            return self.flow.sample(self.variables(params), key, 1, self.context)[0]
        return self.flow.sample(self.variables(params), key, self.row.samples)


class Flowjax(Contender):
    name, requires = "flowjax", "flowjax"
    static: Any

    def realnvp(self, row: Row) -> None:
        from flowjax.distributions import StandardNormal
        from flowjax.flows import coupling_flow

        self.partition(
            coupling_flow(
                jax.random.key(0),
                base_dist=StandardNormal(row.event_shape),
                flow_layers=row.layers,
                nn_width=row.hidden_dims[0],
                nn_depth=len(row.hidden_dims),
            )
        )

    def spline(self, row: Row) -> None:
        from flowjax.bijections import RationalQuadraticSpline
        from flowjax.distributions import StandardNormal
        from flowjax.flows import coupling_flow

        self.partition(
            coupling_flow(
                jax.random.key(0),
                base_dist=StandardNormal(row.event_shape),
                transformer=RationalQuadraticSpline(
                    knots=row.options["num_bins"] - 1, interval=row.options["tail_bound"]
                ),
                flow_layers=row.layers,
                nn_width=row.hidden_dims[0],
                nn_depth=len(row.hidden_dims),
            )
        )

    @staticmethod
    def build_maf(row: Row) -> Any:
        from flowjax.distributions import StandardNormal
        from flowjax.flows import masked_autoregressive_flow

        return masked_autoregressive_flow(
            jax.random.key(0),
            base_dist=StandardNormal(row.event_shape),
            flow_layers=row.layers,
            nn_width=row.hidden_dims[0],
            nn_depth=len(row.hidden_dims),
            cond_dim=row.context_dim or None,
        )

    def maf(self, row: Row) -> None:
        self.partition(self.build_maf(row))

    maf_of_flowjax = conditional = maf

    def planar(self, row: Row) -> None:
        from flowjax.distributions import StandardNormal
        from flowjax.flows import planar_flow

        base = StandardNormal(row.event_shape)
        self.partition(planar_flow(jax.random.key(0), base_dist=base, flow_layers=row.layers))

    @staticmethod
    def build_bnaf(row: Row) -> Any:
        from flowjax.distributions import StandardNormal
        from flowjax.flows import block_neural_autoregressive_flow

        base = StandardNormal(row.event_shape)
        return block_neural_autoregressive_flow(
            jax.random.key(0), base_dist=base, flow_layers=row.layers
        )

    def bnaf(self, row: Row) -> None:
        self.partition(self.build_bnaf(row))

    def partition(self, flow: Any) -> None:
        """Trainable arrays apart from everything else, as flowjax's own training loop does."""
        import equinox
        import paramax

        self.params, self.static = equinox.partition(
            flow,
            equinox.is_inexact_array,
            is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable),
        )

    def flow(self, params: Any) -> Any:
        import equinox
        import paramax

        return paramax.unwrap(equinox.combine(params, self.static))

    def log_prob(self, params: Any, x: Array) -> Array:
        return self.flow(params).log_prob(x, self.given(x))

    def forward(self, params: Any, x: Array) -> Array:
        return jax.vmap(self.flow(params).bijection.inverse)(x, self.given(x))

    def inverse(self, params: Any, z: Array) -> Array:
        return jax.vmap(self.flow(params).bijection.transform)(z, self.given(z))

    def sample(self, params: Any, key: Array) -> Array:
        if self.row.model == "bnaf":
            raise NotImplementedError  # its search runs out of steps for some of the noise
        if self.context is not None:
            return self.flow(params).sample(key, (), self.context)
        return self.flow(params).sample(key, (self.row.samples,))


class Distrax(Contender):
    name, requires = "distrax", "distrax"
    flow: Callable[[Any], Any]

    def realnvp(self, row: Row) -> None:
        import distrax

        half = row.dim // 2
        keys = jax.random.split(jax.random.key(0), row.layers)
        self.params = [init_mlp(key, half, row.hidden_dims, row.dim) for key in keys]

        def bijector(outputs: Array) -> Any:
            s, t = jnp.split(outputs, 2, -1)
            return distrax.ScalarAffine(shift=t, log_scale=jnp.tanh(s))

        def flow(params: Any) -> Any:
            layers = [
                distrax.SplitCoupling(
                    half, 1, lambda x, p=p: apply_mlp(p, x), bijector, swap=i % 2 == 1
                )
                for i, p in enumerate(params)
            ]
            base = distrax.Independent(distrax.Normal(jnp.zeros(row.dim), jnp.ones(row.dim)), 1)
            return distrax.Transformed(base, distrax.Chain(layers))

        self.flow = flow

    def spline(self, row: Row) -> None:
        import distrax

        half = row.dim // 2
        width, bound = 3 * row.options["num_bins"] + 1, row.options["tail_bound"]
        keys = jax.random.split(jax.random.key(0), row.layers)
        self.params = [init_mlp(key, half, row.hidden_dims, half * width) for key in keys]

        def bijector(outputs: Array) -> Any:
            return distrax.RationalQuadraticSpline(
                outputs.reshape(*outputs.shape[:-1], half, width),
                -bound,
                bound,
                boundary_slopes="identity",
            )

        def flow(params: Any) -> Any:
            layers = [
                distrax.SplitCoupling(
                    half, 1, lambda x, p=p: apply_mlp(p, x), bijector, swap=i % 2 == 1
                )
                for i, p in enumerate(params)
            ]
            base = distrax.Independent(distrax.Normal(jnp.zeros(row.dim), jnp.ones(row.dim)), 1)
            return distrax.Transformed(base, distrax.Chain(layers))

        self.flow = flow

    def log_prob(self, params: Any, x: Array) -> Array:
        return self.flow(params).log_prob(x)

    def forward(self, params: Any, x: Array) -> Array:
        return self.flow(params).bijector.inverse(x)

    def inverse(self, params: Any, z: Array) -> Array:
        return self.flow(params).bijector.forward(z)

    def sample(self, params: Any, key: Array) -> Array:
        return self.flow(params).sample(seed=key, sample_shape=self.row.samples)


class Bijx(Contender):
    name, requires = "bijx", "bijx"
    graph: Any
    rest: Any

    def realnvp(self, row: Row) -> None:
        import bijx
        from flax import nnx

        # Clamped by tanh to factors within 1/e and e, as ours: the default overflows at dim 2.
        self.couplings(
            row,
            bijx.AffineLinear(transform_scale=lambda s: jnp.exp(jnp.tanh(s)), rngs=nnx.Rngs(0)),
        )

    def spline(self, row: Row) -> None:
        """Splines on (0, 1), where bijx has them; the identity outside."""
        import bijx
        from flax import nnx

        self.couplings(row, bijx.MonotoneRQSpline(row.options["num_bins"], rngs=nnx.Rngs(0)))

    def couplings(self, row: Row, transform: Any) -> None:
        """Couplings with alternating masks and one network each."""
        import bijx
        from flax import nnx

        rngs, template = nnx.Rngs(0), bijx.ModuleReconstructor(transform)
        layers = []
        for i in range(row.layers):
            mask = bijx.checker_mask(row.event_shape, parity=i % 2 == 1)
            active = mask.count_primary
            network = bijx.nn.nets.MLP(
                mask.count_secondary,
                active * template.params_total_size,
                list(row.hidden_dims),
                activation=nnx.relu,
                rngs=rngs,
            )
            layers.append(
                bijx.GeneralCouplingLayer(
                    nnx.Sequential(
                        network, lambda p, active=active: p.reshape(*p.shape[:-1], active, -1)
                    ),
                    mask,
                    template,
                )
            )
        self.split(bijx.Transformed(bijx.IndependentNormal(row.event_shape), bijx.Chain(*layers)))

    def split(self, flow: Any) -> None:
        """Trainable arrays apart from everything else."""
        from flax import nnx

        self.graph, self.params, self.rest = nnx.split(flow, nnx.Param, ...)

    def flow(self, params: Any) -> Any:
        from flax import nnx

        return nnx.merge(self.graph, params, self.rest)

    def log_prob(self, params: Any, x: Array) -> Array:
        return self.flow(params).log_density(x)

    def forward(self, params: Any, x: Array) -> Array:
        return self.flow(params).bijection.reverse(x, jnp.zeros(len(x)))[0]

    def inverse(self, params: Any, z: Array) -> Array:
        return self.flow(params).bijection.forward(z, jnp.zeros(len(z)))[0]

    def sample(self, params: Any, key: Array) -> Array:
        return self.flow(params).sample((self.row.samples,), rng=key)[0]


class Diffrax(Contender):
    """A continuous flow as one writes it by hand: the trace from the Jacobian of every row."""

    name, requires = "diffrax", "diffrax"

    def continuous(self, row: Row) -> None:
        layers = init_mlp(jax.random.key(0), row.dim + 1, row.hidden_dims, row.dim)
        self.params = jax.tree.map(lambda leaf: row.options["growth"] * leaf, layers)

    matching = continuous

    def solve(self, params: Any, x: Array, log_det: Array | None, start: float) -> Any:
        import diffrax

        def velocity(params: Any, t: Array, x: Array) -> Array:
            x = jnp.concatenate([x, t[None]])
            for layer in params[:-1]:
                x = jnp.tanh(x @ layer["w"] + layer["b"])
            return x @ params[-1]["w"] + params[-1]["b"]

        def field(t: Array, state: Any, params: Any) -> Any:
            def row(x: Array) -> tuple[Array, Array]:
                return velocity(params, t, x), jnp.trace(jax.jacfwd(velocity, 2)(params, t, x))

            if log_det is None:
                return jax.vmap(lambda x: velocity(params, t, x))(state)
            return jax.vmap(row)(state[0])

        tolerance = self.row.options["tolerances"][self.name]
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            start,
            1 - start,
            None,
            x if log_det is None else (x, log_det),
            params,
            stepsize_controller=diffrax.PIDController(tolerance, tolerance),
        )

    def evaluations(self) -> int | None:
        solution = self.solve(self.params, self.x, jnp.zeros(len(self.x)), 0.0)
        return 3 + 6 * int(solution.stats["num_steps"])

    def log_prob(self, params: Any, x: Array) -> Array:
        z, log_det = (y[-1] for y in self.solve(params, x, jnp.zeros(len(x)), 0.0).ys)
        constant = self.row.event_shape[0] * math.log(2 * math.pi) / 2
        return log_det - jnp.square(z).sum(-1) / 2 - constant

    def forward(self, params: Any, x: Array) -> Array:
        return self.solve(params, x, None, 0.0).ys[-1]

    def inverse(self, params: Any, z: Array) -> Array:
        """With the log-determinant, which ours returns too."""
        return self.solve(params, z, jnp.zeros(len(z)), 1.0).ys[0][-1]

    def sample(self, params: Any, key: Array) -> Array:
        return self.solve(params, jax.random.normal(key, self.x.shape), None, 1.0).ys[-1]


class SingleFile(Contender):
    """The papers' arithmetic in a single file."""

    requires, cached = "jax", True

    def build(self, row: Row) -> None:
        sizes = row.hidden_dims[0], row.options["num_blocks"], row.options["num_heads"]
        patch = row.options["patch_size"]
        self.flow = Flow(row.model, row.event_shape, patch, row.layers, sizes)
        self.params = self.flow.init(jax.random.key(0))

    def log_prob(self, params: Any, x: Array) -> Array:
        z, log_det = self.flow.forward(params, x)
        constant = math.prod(self.row.event_shape) * math.log(2 * math.pi) / 2
        return log_det - jnp.square(z).sum((1, 2, 3)) / 2 - constant

    def forward(self, params: Any, x: Array) -> Array:
        return self.flow.forward(params, x)[0]

    def inverse(self, params: Any, z: Array) -> Array:
        return self.flow.inverse(params, z, self.cached)

    def sample(self, params: Any, key: Array) -> Array:
        return self.inverse(params, jax.random.normal(key, self.as_sampled.shape))


class Published(SingleFile):
    """Samples by a cache of keys and values."""

    name = "single file"
    tarflow = jet = SingleFile.build


class Naive(SingleFile):
    """Samples by a pass of all tokens for each."""

    name, cached = "single file, no cache", False
    tarflow = SingleFile.build

    def job(self, op: str) -> Callable[[], object]:
        if op != "sample":
            raise NotImplementedError
        return super().job(op)


class Floor:
    """The conditioners' matrix products alone, layer after layer in a scan; with gradients for ``train``."""

    name = "floor"

    def __init__(self, row: Row) -> None:
        keys = jax.random.split(jax.random.key(0), 1 + len(row.products))
        self.x = jax.random.normal(keys[0], (row.batch, row.conditioner[0]))
        self.weights = [
            jax.random.normal(key, (row.layers, *widths)) / widths[0] ** 0.5
            for key, widths in zip(keys[1:], row.products, strict=True)
        ]

    def job(self, op: str) -> Callable[[], object]:
        def forward(weights: list[Array], x: Array) -> Array:
            def layer(x: Array, weights: list[Array]) -> tuple[Array, None]:
                width = x.shape[-1]
                for weight in weights:
                    x = x @ weight
                return x[:, :width], None

            return jax.lax.scan(layer, x, weights)[0]

        def train(weights: list[Array], x: Array) -> list[Array]:
            return jax.grad(lambda weights: forward(weights, x).sum())(weights)

        function = jax.jit(train if op == "train" else forward)
        return lambda: jax.block_until_ready(function(self.weights, self.x))


CONTENDERS = (Twinflows, Distrax, Flowjax, Bijx, Diffrax, Published, Naive)

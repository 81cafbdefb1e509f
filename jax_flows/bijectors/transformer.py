"""Autoregressive maps of tokens, whose parameters come from a transformer."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import attention as bridge
from flow_bridge import checks
from flow_bridge.domains import Interval
from flow_bridge.errors import ConvergenceError
from flow_bridge.masks import Order, autoregressive_order
from jax_flows.bijectors.autoregressive import implicit_inverse
from jax_flows.bijectors.base import Bijector
from jax_flows.inputs import check_input
from jax_flows.networks.attention import CausalTransformer, Steps
from jax_flows.numerics import as_int32, is_eager
from jax_flows.registry import register
from jax_flows.univariate.base import UnivariateMap
from jax_flows.variables import AnyArray, Output, Variables, gather


class Sweeps(NamedTuple):
    """What an inverse by sweeps found.

    Attributes:
        x: shape ``(*batch, dim)``.
        log_det: log|det dx/dz|, of shape ``(*batch,)``.
        num_sweeps: how many sweeps there were, of all blocks together.
        change: by how much the last of them moved each row, the largest |dx| / (1 + |x|), ``(*batch,)``: if
            that is rounding x is found. It is 0 after as many sweeps as there are tokens, and of several
            blocks the largest.
    """

    x: Array
    log_det: Array
    num_sweeps: Array
    change: Array


@register
@dataclass(frozen=True)
class TransformerAutoregressive(Bijector):
    """z_t = map(x_t; parameters_t(x_<t)) for tokens x_t, with the parameters from a causal transformer.

    A vector holds one token of ``token_dim`` entries after the other. Every entry of a token is mapped
    given all tokens before it, by parameters that the transformer reads out one place earlier; the first
    ones see a learned beginning, and the context. log|det| is the sum of the logs of the map's slopes.

    ``forward`` is one pass. ``inverse`` finds one token after another and keeps the keys and values of
    the known ones, so that all of its steps together cost about one pass. Its gradients keep what each
    step saw of them: memory that grows with the square of the number of tokens.

    Args:
        dim: number of entries.
        map: what happens to an entry, given its parameters.
        token_dim: entries of a token.
        hidden_dim: width of the tokens in the transformer, a multiple of ``num_heads``.
        num_blocks: blocks of attention and MLP.
        num_heads: heads of the attention.
        order: which token is generated when: ``None`` (0, 1, 2, ...), ``"reverse"``, ``"random:SEED"``, or
            a list of the tokens.
        context_dim: width of the context, 0 for none.
        activation: of the MLPs, a name in ``networks.activations.ACTIVATIONS``.
        initial_scale: factor of the first weights of the last layer; with 0 most maps start as the identity.
        max_sweeps: ``None``, or the number of Jacobi sweeps x <- map^-1(z; parameters(x)) that an inverse
            may take in place of its steps. Each is one pass for all tokens at once; as many sweeps as there
            are tokens are always enough, and far fewer often are. Gradients are those of the steps.
        rotary, qk_norm, gated, context, context_tokens, checkpointing: as in ``networks.Transformer``.
        guidance: ``None``, or a weight w: the context then is two of half its width, c and one without
            information u, and parameters are p_c + w (p_c - p_u); two weights are that of the first token and
            that of the last, the others lie in between. See ``guided``.
        sweep_size: ``None``, or how many tokens are found together by sweeps (Gauss-Seidel-Jacobi): blocks of
            so many, one after another, of which each takes up to ``max_sweeps`` sweeps of its tokens alone,
            with keys and values kept of those before them.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for an order that is not one, widths that are no multiples, and a ``MixedMap``.
        ConvergenceError: if ``max_sweeps`` were too few, outside compiled code; there the row is NaN.

    Reference: Zhai et al. (2024), TarFlow, arXiv:2412.06329; Gu et al. (2025), STARFlow,
    arXiv:2506.06276; sweeps: Song et al. (2021), arXiv:2002.03629, in blocks: Liu and Qin (2025),
    arXiv:2505.12849.

    Examples:
        >>> import jax, jax_flows
        >>> map = jax_flows.SplineMap(num_bins=4)
        >>> bijector = jax_flows.TransformerAutoregressive(6, map, token_dim=2, hidden_dim=8)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 6)))
        >>> z.shape, log_det.shape
        ((5, 6), (5,))
    """

    dim: int
    map: UnivariateMap
    token_dim: int = 1
    hidden_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    order: Order = None
    context_dim: int = 0
    activation: str = "gelu"
    initial_scale: float = 0.0
    max_sweeps: int | None = None
    rotary: bool = False
    qk_norm: bool = False
    gated: bool = False
    context: str = "add"
    context_tokens: int = 1
    checkpointing: bool = False
    guidance: bridge.Guidance = None
    sweep_size: int | None = None

    constant_fields = ("order",)

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = "TransformerAutoregressive"
        checks.instances(owner, "map", [self.map], UnivariateMap)
        checks.one_map(owner, self.map)
        bridge.check_sweeps(owner, self.max_sweeps, self.sweep_size)
        _ = self.generated, self.weights, self.network

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return self.map.domain

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.map.codomain

    @property
    def num_tokens(self) -> int:
        """How many tokens there are."""
        return bridge.num_tokens("TransformerAutoregressive", self.dim, self.token_dim)

    @cached_property
    def generated(self) -> np.ndarray:
        """The tokens in the order of generation."""
        return as_int32(autoregressive_order(self.order, self.num_tokens))

    @cached_property
    def weights(self) -> list[float] | None:
        """The weight of the guidance for every token."""
        owner, tokens = "TransformerAutoregressive", self.num_tokens
        return bridge.guidance_weights(owner, self.guidance, tokens, self.context_dim)

    @cached_property
    def network(self) -> CausalTransformer:
        """The transformer."""
        options = bridge.Blocks.of(self)
        if self.weights is not None:
            options = replace(options, context_dim=self.context_dim // 2)
        in_dim, out_dim = self.map.num_features, self.map.num_parameters
        return CausalTransformer(
            self.token_dim * in_dim, self.token_dim * out_dim, self.num_tokens, options
        )

    def scan_constants(self) -> dict[str, Any]:
        return {
            "generated": self.generated,
            "position": as_int32(np.argsort(self.generated)),
        }

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return gather({"network": {"params": self.network.init(key, dtype)}})

    def variable_shapes(self, dtype: Any) -> Variables:
        return gather({"network": {"params": self.network.shapes(dtype)}})

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        tokens = self._tokens(variables, x)
        z, log_slope = self.map.forward(tokens, self._parameters_of(variables, tokens, context))
        return self._vector(variables, z), log_slope.sum((-2, -1))

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        if self.max_sweeps is None:
            return implicit_inverse(self, variables, z, context)
        x, log_det = _swept_inverse(self, variables, z, context)
        if self.max_sweeps < bridge.sweep_size(self.sweep_size, self.num_tokens):
            found = jnp.isnan(log_det) & jnp.isfinite(z).all(-1)
            if is_eager(found) and found.any():
                raise ConvergenceError(bridge.sweeps_message(int(found.sum()), self.max_sweeps))
        return x, log_det

    def inverse_by_sweeps(
        self,
        variables: Variables,
        z: AnyArray,
        max_sweeps: int,
        context: AnyArray | None = None,
        sweep_size: int | None = None,
    ) -> Sweeps:
        """``inverse`` by sweeps, however far they come, without gradients.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            z: shape ``(*batch, dim)``.
            max_sweeps: after how many to stop in each block, if they still move something by more than
                rounding and there are more tokens.
            context: as for ``inverse``.
            sweep_size: tokens of a block, all if not given.
        """
        z, context = check_input(self, variables, "z", z, context)
        bridge.check_sweeps("TransformerAutoregressive", max_sweeps, sweep_size)
        size = bridge.sweep_size(sweep_size, self.num_tokens)
        given = jax.lax.stop_gradient((variables, z, context))
        return self.solve_by_sweeps(*given, max_sweeps, size)

    def solve_by_sweeps(
        self,
        variables: Variables,
        z: Array,
        context: Array | None,
        max_sweeps: int,
        sweep_size: int,
    ) -> Sweeps:
        """``inverse_by_sweeps`` of what has been checked."""
        params, network, count = variables["params"]["network"], self.network, self.num_tokens
        tokens, seen, context = self._rows(variables, z, context)
        given = jnp.isfinite(tokens).all((-2, -1))

        def part(x: Array, t: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, t, sweep_size, 1)

        def changed(x: Array, own: Array, t: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(x, own, t, 1)

        def going(carry: tuple[Any, ...]) -> Array:
            return carry[0] < count

        def sweep(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            start, tries, total, x, log_slopes, change, state = carry
            t = jnp.minimum(start, count - sweep_size)
            before = part(x, t)
            # the first token is not seen at the beginning
            known = jnp.concatenate([part(x, jnp.maximum(t - 1, 0))[:, :1], before[:, :-1]], 1)
            out, state = network.step(params, t, self._seen(_finite(known)), state)
            own, log_slope = self._solve(part(tokens, t), out, self._weights(t, sweep_size))
            new = jnp.minimum(count - start, sweep_size)
            moved = jnp.where(tries + 1 < new, _change(before, own, (-2, -1)), 0)
            done = (tries + 1 >= max_sweeps) | ~_moving(moved, given).any()
            return (
                jnp.where(done, start + sweep_size, start),
                jnp.where(done, 0, tries + 1),
                total + 1,
                changed(x, own, t),
                changed(log_slopes, log_slope, t),
                jnp.where(done, jnp.maximum(change, moved), change),
                state,
            )

        with jax.default_matmul_precision("highest"):
            zero, no_sweep = jnp.zeros((), int), jnp.zeros((), jnp.int32)
            empty = jnp.zeros_like(tokens), jnp.zeros_like(tokens[:, 0, 0])
            first = zero, zero, no_sweep, tokens, *empty, network.begin(params, seen, context)
            _, _, total, x, log_slopes, change, _ = jax.lax.while_loop(going, sweep, first)
        batch = z.shape[:-1]
        x = self._vector(variables, x.reshape(*batch, count, self.token_dim))
        return Sweeps(x, log_slopes.sum((-2, -1)).reshape(batch), total, change.reshape(batch))

    def explicit_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        """One token after the other."""
        params, network = variables["params"]["network"], self.network
        tokens, seen, context = self._rows(variables, z, context)
        # an inverse is computed in full precision
        with jax.default_matmul_precision("highest"):
            start = network.begin(params, seen, context)

            def step(carry: tuple[Array, Steps], row: tuple[Array, Array]) -> Any:
                t, token = row
                seen, state = carry
                out, state = network.step(params, t, seen, state)
                x, log_slope = self._solve(token[:, None], out, self._weights(t, 1))
                return (self._seen(x), state), (x[:, 0], log_slope.sum((-2, -1)))

            rows = jnp.arange(self.num_tokens), jnp.moveaxis(tokens, 1, 0)
            _, (found, log_slopes) = jax.lax.scan(step, (seen, start), rows)
        x = jnp.moveaxis(found, 0, 1).reshape(*z.shape[:-1], self.num_tokens, self.token_dim)
        return self._vector(variables, x), log_slopes.sum(0).reshape(z.shape[:-1])

    def _rows(
        self, variables: Variables, z: Array, context: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """z as tokens of one batch axis, what the network is given before any is known, and the context."""
        tokens = self._tokens(variables, z).reshape(-1, self.num_tokens, self.token_dim)
        if context is not None:
            context = context.reshape(-1, self.network.options.context_dim)
        return tokens, self._seen(tokens[:, :1]), context

    def _weights(self, t: Array, count: int) -> Array | None:
        """Those of the guidance for tokens from t on, ``(count, 1)``."""
        if self.weights is None:
            return None
        return jax.lax.dynamic_slice_in_dim(jnp.array(self.weights), t, count)[:, None]

    def _solve(self, tokens: Array, out: Array, weights: Array | None) -> Output:
        """x of tokens ``(batch, n, token_dim)`` of z, from what the network gave for their places, and the
        weights of their guidance."""
        if weights is not None:
            pair = out.reshape(-1, 2, *out.shape[1:]).swapaxes(1, 2)
            out = _guide(pair, weights.astype(out.dtype))
        return self.map.inverse(tokens, out.reshape(*tokens.shape, self.map.num_parameters))

    def _seen(self, x: Array) -> Array:
        """What the network sees of tokens, once for each context."""
        seen = self.map.features(x, -1)
        return seen if self.weights is None else jnp.repeat(seen, 2, 0)

    def _parameters_of(self, variables: Variables, tokens: Array, context: Array | None) -> Array:
        """Those of every entry, ``(*batch, num_tokens, token_dim, num_parameters)``."""
        params, seen = variables["params"]["network"], self.map.features(tokens, -1)
        if self.weights is None:
            out = self.network(params, seen, context)
        else:
            *batch, count, width = seen.shape
            seen = jnp.broadcast_to(seen[..., None, :, :], (*batch, 2, count, width))
            pair = jnp.asarray(context).reshape(*batch, 2, self.context_dim // 2)
            out = self.network(params, seen, pair).swapaxes(-3, -2)
            out = _guide(out, jnp.array(self.weights, out.dtype)[:, None])
        return out.reshape(*tokens.shape, self.map.num_parameters)

    def _tokens(self, variables: Variables, x: Array) -> Array:
        """The tokens in the order of generation, ``(*batch, num_tokens, token_dim)``."""
        tokens = x.reshape(*x.shape[:-1], self.num_tokens, self.token_dim)
        return self._in_order(variables, "generated", tokens)

    def _vector(self, variables: Variables, tokens: Array) -> Array:
        """The inverse of ``_tokens``."""
        tokens = self._in_order(variables, "position", tokens)
        return tokens.reshape(*tokens.shape[:-2], self.dim)

    def _in_order(self, variables: Variables, name: str, tokens: Array) -> Array:
        """The tokens by one of the constants."""
        if self.order is None and not variables.get("constants"):
            return tokens
        return tokens[..., self.constants(variables)[name], :]


def _finite(x: Array) -> Array:
    """x without infinities: what overflows before its turn is not to reach the tokens before it, as 0 times
    infinity."""
    return jnp.where(jnp.isfinite(x), x, 0)


def _change(before: Array, x: Array, axes: Any) -> Array:
    """By how much a sweep moved each row."""
    return (jnp.abs(x - before) / (1 + jnp.abs(x))).max(axes)


def _moving(change: Array, given: Any) -> Array:
    """Which of the given rows are not solved."""
    return ~(change <= bridge.SWEEP_TOLERANCE * float(jnp.finfo(change.dtype).eps)) & given


def _guide(pair: Array, weight: Any) -> Array:
    """Parameters ``(*batch, 2, count)`` of two contexts, those of the first moved away from the second's."""
    given, free = pair[..., 0, :], pair[..., 1, :]
    return given + weight * (given - free)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _swept_inverse(
    bijector: TransformerAutoregressive, variables: Variables, z: Array, context: Array | None
) -> Output:
    max_sweeps = checks.known(bijector.max_sweeps)
    size = bridge.sweep_size(bijector.sweep_size, bijector.num_tokens)
    x, log_det, _, change = bijector.solve_by_sweeps(variables, z, context, max_sweeps, size)
    failed = ~jnp.isfinite(x).all(-1)
    if max_sweeps < size:
        failed = failed | _moving(change, True)
    return jnp.where(failed[..., None], jnp.nan, x), jnp.where(failed, jnp.nan, log_det)


@_swept_inverse.defjvp
def _swept_inverse_jvp(
    bijector: TransformerAutoregressive, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Output, Output]:
    """Sweeps have no gradients: the steps have."""
    return jax.jvp(partial(implicit_inverse, bijector), primals, tangents)

"""Flows and bijectors as those of NumPyro and of Distrax, which are imported when they are used."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from flow_bridge import checks, optional
from flow_bridge.domains import REALS, Interval
from jax_flows.bijectors.base import Bijector
from jax_flows.inputs import context_batch
from jax_flows.variables import AnyArray, Output, Variables, child

if TYPE_CHECKING:
    from jax_flows.flows import Flow


def numpyro_distribution(
    flow: "Flow",
    variables: Variables,
    context: AnyArray | None = None,
    validate_args: bool | None = None,
) -> Any:
    """A flow as a ``numpyro.distributions.Distribution`` (class ``NumPyroDistribution``).

    ``support`` is the domain of the flow's bijector. Samples have shape
    ``(*sample_shape, *batch_shape, *event_shape)``; ``log_prob`` broadcasts its value against
    ``batch_shape``. It is a pytree of the variables and the context: it passes through ``jit`` and
    ``vmap``, and the variables may be traced. A value that was sampled from it is scored by NumPyro
    without a second pass.

    Args:
        flow: the flow.
        variables: its arrays.
        context: shape ``(*batch_shape, context_dim)``, for a flow that takes one.
        validate_args: warn about values outside the support; NumPyro's default if not given.

    Raises:
        ImportError: if NumPyro is not installed.
        ValueError, TypeError: for a context that is missing, unexpected, or of a wrong shape or dtype.
    """
    return _numpyro_classes()[0](flow, variables, context, validate_args=validate_args)


def numpyro_transform(
    bijector: Bijector, variables: Variables, context: AnyArray | None = None
) -> Any:
    """A bijector as a ``numpyro.distributions.transforms.Transform``, from data to latent.

    ``TransformedDistribution(base, transform.inv)`` is the flow on any NumPyro base. The event axes
    are those of the bijector: an elementwise bijector has ``event_ndim`` of them and sums its log-det
    over them. It is a pytree of the variables and the context.

    Args:
        bijector: the bijector; of a flow it is the flow's own.
        variables: the arrays, of the bijector or of the flow.
        context: shape ``(*batch, context_dim)``; inputs broadcast against its batch.

    Raises:
        ImportError: if NumPyro is not installed.
        ValueError, TypeError: for a context that is missing, unexpected, or of a wrong shape or dtype.
    """
    return _numpyro_classes()[1](*_bijector_of(bijector, variables), context)


def distrax_distribution(
    flow: "Flow", variables: Variables, context: AnyArray | None = None
) -> Any:
    """A flow as a ``distrax.Distribution``. Shapes, arguments and errors as ``numpyro_distribution``."""
    return _distrax_classes()[0](flow, variables, context)


def distrax_bijector(
    bijector: "Bijector | Flow", variables: Variables, context: AnyArray | None = None
) -> Any:
    """A bijector as a ``distrax.Bijector``, from data to latent.

    ``distrax.Transformed(base, distrax.Inverse(bijector))`` is the flow on any Distrax base. Arguments
    and errors as ``numpyro_transform``.
    """
    return _distrax_classes()[1](*_bijector_of(bijector, variables), context)


@cache
def _numpyro_classes() -> tuple[Any, Any]:
    dist = optional.host("A NumPyro distribution", "numpyro.distributions", "NumPyro")
    Distribution: Any = dist.Distribution
    Transform: Any = dist.transforms.Transform
    constraints = dist.constraints

    def constraint(interval: Interval, event_ndim: int) -> Any:
        low, high = interval
        if interval == REALS:
            inner = constraints.real
        elif high == REALS.high:
            inner = constraints.positive if low == 0 else constraints.greater_than(low)
        elif low == REALS.low:
            inner = constraints.less_than(high)
        else:
            kind = constraints.interval if interval.closed else constraints.open_interval
            inner = kind(low, high)
        return constraints.independent(inner, event_ndim)

    class NumPyroDistribution(Distribution):
        """A flow and its variables."""

        pytree_data_fields = ("variables", "context")
        pytree_aux_fields = ("flow",)

        def __init__(
            self,
            flow: "Flow",
            variables: Variables,
            context: Array | None = None,
            *,
            validate_args: bool | None = None,
        ) -> None:
            self.flow = flow
            self.variables = variables
            self.context = context
            batch_shape = context_batch(flow, variables, context)
            super().__init__(batch_shape, flow.event_shape, validate_args=validate_args)

        @constraints.dependent_property(is_discrete=False)
        def support(self) -> Any:
            return constraint(self.flow.bijector.domain, len(self.event_shape))

        @property
        def has_rsample(self) -> bool:
            return self.flow.base.reparameterized

        def rsample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
            if not self.has_rsample:
                base = type(self.flow.base).__name__
                raise NotImplementedError(checks.not_reparameterized(type(self).__name__, base))
            return self.sample(key, sample_shape)

        def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
            return self.sample_with_intermediates(key, sample_shape)[0]

        def sample_with_intermediates(
            self, key: Array, sample_shape: Sequence[int] = ()
        ) -> tuple[Array, list[Array]]:
            """Samples, and their log-densities for ``log_prob``."""
            x, log_prob = self.flow.sample_and_log_prob(
                self.variables, key, tuple(sample_shape), self.context
            )
            return x, [log_prob]

        @dist.util.validate_sample
        def log_prob(self, value: Array, intermediates: list[Array] | None = None) -> Array:
            if intermediates:
                return intermediates[0]
            return _log_prob(self.flow, self.variables, value, self.context)

        def __repr__(self) -> str:
            shapes = f"batch_shape={self.batch_shape}, event_shape={self.event_shape}"
            return f"{type(self).__name__}({type(self.flow).__name__}, {shapes})"

    class NumPyroTransform(Transform):
        """A bijector and its variables."""

        def __init__(
            self, bijector: Bijector, variables: Variables, context: Array | None = None
        ) -> None:
            self.bijector = bijector
            self.variables = variables
            self.context = context
            context_batch(bijector, variables, context)

        @property
        def domain(self) -> Any:
            return constraint(self.bijector.domain, len(self.bijector.event_shape))

        @property
        def codomain(self) -> Any:
            return constraint(self.bijector.codomain, len(self.bijector.latent_shape))

        def __call__(self, x: Array) -> Array:
            return self.call_with_intermediates(x)[0]

        def call_with_intermediates(self, x: Array) -> Output:
            return _forward(self.bijector, self.variables, x, self.context)

        def _inverse(self, z: Array) -> Array:
            return _inverse(self.bijector, self.variables, z, self.context)[0]

        def log_abs_det_jacobian(
            self, x: Array, z: Array, intermediates: Array | None = None
        ) -> Array:
            """log|det dz/dx| of shape ``(*batch,)``."""
            return self.call_with_intermediates(x)[1] if intermediates is None else intermediates

        def forward_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
            return _shape(self, "x", shape)

        def inverse_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
            return _shape(self, "z", shape)

        def tree_flatten(self) -> tuple[Any, Any]:
            names = ("variables", "context")
            return (self.variables, self.context), (names, {"bijector": self.bijector})

        def __repr__(self) -> str:
            return f"{type(self).__name__}({type(self.bijector).__name__})"

    return _named(NumPyroDistribution), _named(NumPyroTransform)


@cache
def _distrax_classes() -> tuple[Any, Any]:
    distrax = optional.host("A Distrax distribution", "distrax", "Distrax")
    Distribution: Any = distrax.Distribution
    HostBijector: Any = distrax.Bijector

    class DistraxDistribution(Distribution):
        """A flow and its variables."""

        def __init__(
            self, flow: "Flow", variables: Variables, context: Array | None = None
        ) -> None:
            super().__init__()
            self.flow = flow
            self.variables = variables
            self.context = context
            context_batch(flow, variables, context)

        @property
        def event_shape(self) -> tuple[int, ...]:
            return self.flow.event_shape  # type: ignore[return-value]

        @property
        def batch_shape(self) -> tuple[int, ...]:
            return () if self.context is None else self.context.shape[:-1]

        def log_prob(self, value: Array) -> Array:
            return _log_prob(self.flow, self.variables, value, self.context)

        def _sample_n(self, key: Array, n: int) -> Array:
            return self._sample_n_and_log_prob(key, n)[0]

        def _sample_n_and_log_prob(self, key: Array, n: int) -> Output:
            return self.flow.sample_and_log_prob(self.variables, key, n, self.context)

    class DistraxBijector(HostBijector):
        """A bijector and its variables."""

        def __init__(
            self, bijector: Bijector, variables: Variables, context: Array | None = None
        ) -> None:
            super().__init__(len(bijector.event_shape), len(bijector.latent_shape))
            self.bijector = bijector
            self.variables = variables
            self.context = context
            context_batch(bijector, variables, context)

        def forward_and_log_det(self, x: Array) -> Output:
            return _forward(self.bijector, self.variables, x, self.context)

        def inverse_and_log_det(self, y: Array) -> Output:
            return _inverse(self.bijector, self.variables, y, self.context)

    return _named(DistraxDistribution), _named(DistraxBijector)


def _named(cls: Any) -> Any:
    """A class that pickle finds: ``__getattr__`` below makes it an attribute of this module."""
    cls.__qualname__ = cls.__name__
    return cls


def __getattr__(name: str) -> Any:
    for host, classes in (("NumPyro", _numpyro_classes), ("Distrax", _distrax_classes)):
        if name.startswith(host):
            for cls in classes():
                if cls.__name__ == name:
                    return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _bijector_of(owner: "Bijector | Flow", variables: Variables) -> tuple[Bijector, Variables]:
    if isinstance(owner, Bijector):
        return owner, variables
    return owner.bijector, child(variables, "bijector")


def _log_prob(flow: "Flow", variables: Variables, x: Array, context: Array | None) -> Array:
    return flow.log_prob(variables, _expand(x, context, len(flow.event_shape)), context)


def _forward(bijector: Bijector, variables: Variables, x: Array, context: Array | None) -> Output:
    return bijector.forward(variables, _expand(x, context, len(bijector.event_shape)), context)


def _inverse(bijector: Bijector, variables: Variables, z: Array, context: Array | None) -> Output:
    return bijector.inverse(variables, _expand(z, context, len(bijector.latent_shape)), context)


def _expand(x: Array, context: Array | None, event_ndim: int) -> Array:
    """x with its batch broadcast against that of the context."""
    cut = jnp.ndim(x) - event_ndim
    if context is None or cut < 0:
        return x
    batch = jnp.broadcast_shapes(x.shape[:cut], context.shape[:-1])
    return jnp.broadcast_to(x, (*batch, *x.shape[cut:]))


def _shape(transform: Any, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    bijector, context = transform.bijector, transform.context
    event_shape = bijector.event_shape if name == "x" else bijector.latent_shape
    batch = checks.batch_of(type(bijector).__name__, name, tuple(shape), event_shape)
    event = bijector.map_shape(tuple(shape[len(batch) :]), inverse=name == "z")
    if context is not None:
        batch = jnp.broadcast_shapes(batch, context.shape[:-1])
    return (*batch, *event)

"""A flow is a bijector and a base distribution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from flow_bridge import checks
from jax_flows import interop
from jax_flows.bijectors.base import Bijector, initialize
from jax_flows.distributions import Distribution
from jax_flows.inputs import check_input
from jax_flows.registry import register
from jax_flows.variables import (
    HasVariables,
    Output,
    Variables,
    child,
    gather,
    weight_dtype,
)


@register
@dataclass(frozen=True)
class Flow(HasVariables):
    """The density of x whose latent z = bijector(x) has the base density.

    log p(x) = log p_base(z) + log|det dz/dx|.

    Args:
        bijector: maps data to latent.
        base: the distribution of the latent.

    Raises:
        ValueError: if the latent and the base are of different event shapes.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.Flow(jax_flows.Planar(2), jax_flows.StandardNormal(2))
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((5, 2))).shape
        (5,)
        >>> sample = jax.jit(flow.sample_and_log_prob, static_argnums=2)
        >>> x, log_prob = sample(variables, jax.random.key(1), (3, 4))
        >>> x.shape, log_prob.shape
        ((3, 4, 2), (3, 4))
    """

    bijector: Bijector
    base: Distribution

    def __post_init__(self) -> None:
        name = type(self).__name__
        checks.instances(name, "bijector", [self.bijector], Bijector)
        checks.instances(name, "base", [self.base], Distribution)
        _ = self.event_shape

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        return checks.common_event_shape(
            type(self).__name__, [self.bijector.latent_shape, self.base.event_shape]
        )

    @property
    def event_shape(self) -> tuple[int | None, ...]:
        return self.bijector.map_shape(self.latent_shape, inverse=True)

    @property
    def context_dim(self) -> int:
        return self.bijector.context_dim

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        bijector_key, base_key = jax.random.split(key)
        return gather(
            {
                "bijector": self.bijector.init_variables(bijector_key, dtype),
                "base": self.base.init_variables(base_key, dtype),
            }
        )

    def forward(self, variables: Variables, x: Array, context: Array | None = None) -> Output:
        """Data to latent.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            x: shape ``(*batch, *event_shape)``, floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.

        Returns:
            z of shape ``(*batch, *latent_shape)`` and log|det dz/dx| of shape ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        x, context = check_input(self, variables, "x", x, context)
        return self.bijector.map_forward(child(variables, "bijector"), x, context)

    def inverse(self, variables: Variables, z: Array, context: Array | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        z, context = check_input(self, variables, "z", z, context)
        return self.bijector.map_inverse(child(variables, "bijector"), z, context)

    def initialize(
        self, variables: Variables, x: Array, context: Array | None = None
    ) -> dict[str, Any]:
        """New variables, with what is initialised from data set, see ``Bijector.initialize``."""
        own = child(variables, "bijector")
        own = initialize(self, self.bijector, variables, own, x, context)
        return {**variables, **gather({"bijector": own, "base": child(variables, "base")})}

    def log_prob(self, variables: Variables, x: Array, context: Array | None = None) -> Array:
        """The log-density in nats, shape ``(*batch,)``. Arguments and errors as ``forward``.

        A row of x with a NaN gives NaN in that row only.
        """
        z, log_det = self.forward(variables, x, context)
        return self.base.log_prob(child(variables, "base"), z) + log_det

    def log_prob_and_update(
        self, variables: Variables, x: Array, context: Array | None = None
    ) -> tuple[Array, Variables]:
        """``log_prob`` in training mode: (log_prob, the new ``batch_stats``)."""
        x, context = check_input(self, variables, "x", x, context)
        z, log_det, batch_stats = self.bijector.map_forward_and_update(
            child(variables, "bijector"), x, context
        )
        log_prob = self.base.log_prob(child(variables, "base"), z) + log_det
        return log_prob, {"bijector": batch_stats} if batch_stats else {}

    def sample(
        self,
        variables: Variables,
        key: Array,
        num_samples: int | Sequence[int],
        context: Array | None = None,
    ) -> Array:
        """Samples of shape ``(num_samples, *context_batch, *event_shape)``, differentiable.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            key: the source of randomness.
            num_samples: how many for each row of the context, an integer or a shape.
            context: shape ``(*context_batch, context_dim)``.
        """
        return self.sample_and_log_prob(variables, key, num_samples, context)[0]

    def sample_and_log_prob(
        self,
        variables: Variables,
        key: Array,
        num_samples: int | Sequence[int],
        context: Array | None = None,
    ) -> Output:
        """Samples and their log-densities, in one pass. Arguments as ``sample``."""
        shape = (num_samples,) if isinstance(num_samples, int) else tuple(num_samples)
        context_batch = () if context is None else context.shape[:-1]
        base = child(variables, "base")
        z = self.base.sample(base, key, (*shape, *context_batch), weight_dtype(variables))
        x, log_det = self.inverse(variables, z, context)
        return x, self.base.log_prob(base, z) - log_det

    def distribution(
        self,
        variables: Variables,
        context: Array | None = None,
        validate_args: bool | None = None,
    ) -> Any:
        """The flow as a NumPyro ``Distribution``, see ``interop.numpyro_distribution``."""
        return interop.numpyro_distribution(self, variables, context, validate_args)

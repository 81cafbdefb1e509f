"""A flow is a bijector and a base distribution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows import interop
from torch_flows.bijectors.base import Bijector, Output, initialize
from torch_flows.distributions import Distribution
from torch_flows.inputs import check_input
from torch_flows.registry import register


@register
class Flow(nn.Module):
    """The density of x whose latent z = bijector(x) has the base density.

    log p(x) = log p_base(z) + log|det dz/dx|.

    Args:
        bijector: maps data to latent.
        base: the distribution of the latent.

    Raises:
        ValueError: if the latent and the base are of different event shapes.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.Flow(torch_flows.Planar(2), torch_flows.StandardNormal(2))
        >>> tuple(flow.log_prob(torch.zeros(5, 2)).shape)
        (5,)
        >>> x, log_prob = flow.sample_and_log_prob((3, 4))
        >>> tuple(x.shape), tuple(log_prob.shape)
        ((3, 4, 2), (3, 4))
    """

    is_architecture = True

    def __init__(self, bijector: Bijector, base: Distribution) -> None:
        super().__init__()
        name = type(self).__name__
        checks.instances(name, "bijector", [bijector], Bijector)
        checks.instances(name, "base", [base], Distribution)
        latent_shape = checks.common_event_shape(name, [bijector.latent_shape, base.event_shape])
        self.latent_shape = latent_shape
        self.event_shape = bijector.map_shape(latent_shape, inverse=True)
        self.context_dim = bijector.context_dim
        self.bijector = bijector
        self.base = base

    def forward(self, x: Tensor, context: Tensor | None = None) -> Output:
        """Data to latent.

        Args:
            x: shape ``(*batch, *event_shape)``, floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.

        Returns:
            z of shape ``(*batch, *latent_shape)`` and log|det dz/dx| of shape ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        return self.bijector.map_forward(x, check_input(self, "x", x, context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        return self.bijector.map_inverse(z, check_input(self, "z", z, context))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set what is initialised from data (``ActNorm``) in place, see ``Bijector.initialize``."""
        initialize(self, self.bijector, x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density in nats, shape ``(*batch,)``. Arguments and errors as ``forward``.

        A row of x with a NaN gives NaN in that row only.
        """
        z, log_det = self.forward(x, context)
        return self.base.log_prob(z) + log_det

    def sample(
        self,
        num_samples: int | Sequence[int],
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples of shape ``(num_samples, *context_batch, *event_shape)``, differentiable.

        Args:
            num_samples: how many for each row of the context, an integer or a shape.
            context: shape ``(*context_batch, context_dim)``.
            generator: the source of randomness.
        """
        return self.sample_and_log_prob(num_samples, context, generator)[0]

    def sample_and_log_prob(
        self,
        num_samples: int | Sequence[int],
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """Samples and their log-densities, in one pass. Arguments as ``sample``."""
        shape = (num_samples,) if isinstance(num_samples, int) else tuple(num_samples)
        context_batch = () if context is None else context.shape[:-1]
        z = self.base.sample((*shape, *context_batch), generator)
        x, log_det = self.inverse(z, context)
        return x, self.base.log_prob(z) - log_det

    def distribution(
        self, context: Tensor | None = None, validate_args: bool | None = None
    ) -> interop.FlowDistribution:
        """The flow as a ``torch.distributions.Distribution``, see ``interop.FlowDistribution``."""
        return interop.distribution(self, context, validate_args)

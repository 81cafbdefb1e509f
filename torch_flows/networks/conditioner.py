"""A network in its place: built for a bijector, and run on what the bijector shows it."""

from typing import Any

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.networks import Network


def build_conditioner(
    owner: str,
    conditioner: Network,
    in_dim: int,
    out_dim: int,
    event_ndim: int,
    context_dim: int,
    **given: Any,
) -> nn.Module:
    """The network of a coupling or an elementwise map, for inputs without the context."""
    takes = getattr(conditioner.cls, "event_ndim", event_ndim)
    checks.conditioner_of(owner, conditioner.cls.__name__, takes, event_ndim)
    lacking = conditioner.lacks({"context_dim": context_dim, **given})
    checks.suits(owner, conditioner.cls.__name__, lacking)
    in_dim = in_dim if conditioner.takes("context_dim") else in_dim + context_dim
    arguments = conditioner.arguments({"context_dim": context_dim, **given})
    return conditioner.cls(in_dim, out_dim, **arguments)


def run_conditioner(owner: Any, inputs: Tensor, context: Tensor | None) -> Any:
    """The output of ``owner.network``, whose class decides how the context goes in."""
    if context is None:
        return owner.network(inputs)
    if owner.context_apart:
        return owner.network(inputs, context)
    axis = -len(owner.event_shape)
    if axis == -3:
        context = context[..., None, None].expand(*context.shape, *inputs.shape[-2:])
    return owner.network(torch.cat([inputs, context], axis))

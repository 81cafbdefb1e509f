"""Annealed importance sampling: from the samples of a flow towards an unnormalised density."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.sources import annealing_noise
from flow_bridge.training import check_callable, check_energy
from torch_flows.bijectors.base import differentiates, evaluation, tracked, vjp
from torch_flows.flows import Flow
from torch_flows.numerics import sum_event


class Annealed(NamedTuple):
    """Weighted samples.

    Attributes:
        x: shape ``(num_samples, *event_shape)``.
        log_weight: shape ``(num_samples,)``, of which ``twinflows.inference`` makes log Z and more.
        log_prob: of x under the flow, shape ``(num_samples,)``.
        energy: of x, shape ``(num_samples,)``.
        acceptance: at each temperature, the share of accepted moves, shape ``(num_temperatures,)``.
    """

    x: Tensor
    log_weight: Tensor
    log_prob: Tensor
    energy: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class AnnealedImportanceSampling:
    """Samples x_0 of a flow q, moved by Hamiltonian Monte Carlo along densities from q to p ~ exp(-energy).

    The k-th move leaves q^(1 - b_k) p^(b_k) invariant, b_k = k power / (num_temperatures + 1), and

        log w = sum_k (b_(k + 1) - b_k) (-energy(x_k) - log q(x_k)), k = 0, ..., num_temperatures.

    Weighted by w the last samples are those of q^(1 - power) p^power, and the mean of w is the integral of
    that: at ``power=1`` the normaliser Z of p; at ``power=2``, the integral of p^2 / q, p is where plain
    importance weights from q have the smallest variance. The moves have no gradients.

    Args:
        energy: from x ``(rows, *event_shape)`` to ``(rows,)``, differentiable, infinite where p is 0.
        power: above 0.
        num_temperatures: how many moves.
        step_size: of the leapfrog steps, in units of x; an acceptance near 0.65 is good.
        num_leapfrog: leapfrog steps of a move.

    Raises:
        TypeError: for an energy that is no function.
        ValueError: for options out of range; when called, for an energy that is not one number for each row.

    Reference: Neal (2001), Annealed Importance Sampling; Midgley et al. (2023), Flow Annealed Importance
    Sampling Bootstrap, arXiv:2208.01893.
    """

    energy: Callable[[Tensor], Tensor]
    power: float = 1.0
    num_temperatures: int = 8
    step_size: float = 0.1
    num_leapfrog: int = 5

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_callable(name, "energy", self.energy)
        checks.positive_number(name, power=self.power, step_size=self.step_size)
        checks.positive_int(
            name, num_temperatures=self.num_temperatures, num_leapfrog=self.num_leapfrog
        )

    def sample(
        self, flow: Flow, num_samples: int, context: Tensor | None = None, seed: int = 0
    ) -> Annealed:
        """Weighted samples, the same for a seed in both backends.

        Args:
            flow: where they start.
            num_samples: how many.
            context: one context ``(context_dim,)``, for a conditional flow.
            seed: of the generator of all noise.
        """
        checks.positive_int(type(self).__name__, num_samples=num_samples)
        like = next(flow.parameters())
        drawn = self.draw(flow, np.random.default_rng(seed), num_samples)
        noise, momenta, uniforms = (torch.from_numpy(array).to(like) for array in drawn)
        return self.from_noise(flow, noise, momenta, uniforms, context)

    def draw(
        self, flow: Flow, generator: np.random.Generator, num_samples: int
    ) -> tuple[np.ndarray, ...]:
        """The noise of some samples: of the base, of the momenta and of the acceptances."""
        base = flow.base.noise, flow.base.noise_shape
        event_shape = tuple(map(checks.known, flow.event_shape))
        return annealing_noise(generator, num_samples, base, self.num_temperatures, event_shape)

    @differentiates
    def from_noise(
        self,
        flow: Flow,
        noise: Tensor,
        momenta: Tensor,
        uniforms: Tensor,
        context: Tensor | None = None,
    ) -> Annealed:
        """Weighted samples made of what ``draw`` gave, in the weights' dtype."""
        with torch.no_grad(), evaluation(flow):
            x, log_prob = flow.from_noise(noise, context)
            energy = self._energies(x)
            increment = self.power / (self.num_temperatures + 1)
            log_weight = increment * (-energy - log_prob)
            acceptance = []
            for k in range(self.num_temperatures):
                share = (k + 1) * increment
                start = x, log_prob, energy
                (x, log_prob, energy), accepted = self._move(
                    flow, start, momenta[:, k], uniforms[:, k], share, context
                )
                log_weight = log_weight + increment * (-energy - log_prob)
                acceptance.append(accepted.to(x.dtype).mean())
            return Annealed(x, log_weight, log_prob, energy, torch.stack(acceptance))

    def _move(
        self,
        flow: Flow,
        start: tuple[Tensor, Tensor, Tensor],
        momentum: Tensor,
        uniform: Tensor,
        share: float,
        context: Tensor | None,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """A move of Hamiltonian Monte Carlo, and which rows it moved."""
        x, log_prob, energy = start
        before = (1 - share) * log_prob - share * energy - self._kinetic(momentum)
        slope, *_ = self._slope(flow, x, share, context)
        for _ in range(self.num_leapfrog):
            momentum = momentum + self.step_size / 2 * slope
            x = x + self.step_size * momentum
            slope, *densities = self._slope(flow, x, share, context)
            momentum = momentum + self.step_size / 2 * slope
        after = (1 - share) * densities[0] - share * densities[1] - self._kinetic(momentum)
        accepted = (uniform.log() < after - before) & after.isfinite()
        rows = accepted.reshape(-1, *[1] * (x.ndim - 1))
        pairs = zip((x, *densities), start, (rows, accepted, accepted), strict=True)
        x, log_prob, energy = (torch.where(where, new, old) for new, old, where in pairs)
        return (x, log_prob, energy), accepted

    def _slope(
        self, flow: Flow, x: Tensor, share: float, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of a log-density between q and p at x, log q(x) and the energy."""
        with torch.enable_grad():
            point = tracked(x, keep_graph=False)
            densities = flow.log_prob(point, context), self._energies(point)
            factors = (torch.full_like(densities[0], f) for f in (1 - share, -share))
            slope = vjp(densities, point, tuple(factors), differentiable=False)
        return slope, densities[0].detach(), densities[1].detach()

    def _energies(self, x: Tensor) -> Tensor:
        values = self.energy(x)
        check_energy(type(self).__name__, x.shape, getattr(values, "shape", None))
        return values

    @staticmethod
    def _kinetic(momentum: Tensor) -> Tensor:
        return sum_event(momentum.square(), momentum.ndim - 1) / 2

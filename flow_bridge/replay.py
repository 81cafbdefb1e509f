"""Annealed samples for many steps: the replay buffer of flow annealed importance sampling bootstrap."""

from typing import Any, NamedTuple

import numpy as np

from flow_bridge import checks


class Replayed(NamedTuple):
    """Rows of a buffer.

    Attributes:
        rows: their numbers, for ``ReplayBuffer.correct``.
        x: shape ``(num_rows, *event_shape)``.
        log_prob: under the flow that they were last corrected for, shape ``(num_rows,)``.
    """

    rows: np.ndarray
    x: np.ndarray
    log_prob: np.ndarray


class ReplayBuffer:
    """Annealed samples (``AnnealedImportanceSampling`` with ``power=2``), drawn again by their weights.

    A step draws rows by their weights, takes the gradient of -mean(c log q(x)) with the factors c that
    ``correct`` returns, which also brings the rows' weights up to date:

        c = (q_old(x) / q(x))^(power - 1), at most ``largest``.

    Args:
        capacity: how many rows are kept, the newest.
        power: of the annealing.
        largest: the largest factor.
        seed: of the generator that draws rows.

    Raises:
        ValueError: for numbers out of range, rows of another shape, and more rows than there are.

    Reference: Midgley et al. (2023), Flow Annealed Importance Sampling Bootstrap, arXiv:2208.01893.
    """

    def __init__(
        self, capacity: int, power: float = 2.0, largest: float = 10.0, seed: int = 0
    ) -> None:
        name = type(self).__name__
        checks.positive_int(name, capacity=capacity)
        checks.positive_number(name, power=power, largest=largest)
        checks.non_negative_int(name, seed=seed)
        self.capacity, self.power, self.largest = capacity, power, largest
        self._generator = np.random.default_rng(seed)
        self._x = self._log_weight = self._log_prob = np.empty(0)

    def __len__(self) -> int:
        return len(self._log_weight)

    def add(self, x: Any, log_weight: Any, log_prob: Any) -> None:
        """Rows of ``Annealed``, of either backend; those without a finite weight are left out."""
        x, log_weight, log_prob = _host(x), _host(log_weight, float), _host(log_prob, float)
        if log_weight.shape != x.shape[:1] or log_prob.shape != x.shape[:1]:
            raise ValueError(
                f"ReplayBuffer expects a weight and a log-density for each of {len(x)} rows, got shapes "
                f"{log_weight.shape} and {log_prob.shape}."
            )
        if len(self) and x.shape[1:] != self._x.shape[1:]:
            raise ValueError(
                f"ReplayBuffer holds rows of shape {self._x.shape[1:]}, got {x.shape[1:]}."
            )
        good = np.isfinite(log_weight) & np.isfinite(log_prob)
        new = (a[good] for a in (x, log_weight, log_prob))
        if len(self):
            old = (self._x, self._log_weight, self._log_prob)
            new = (np.concatenate(both) for both in zip(old, new, strict=True))
        self._x, self._log_weight, self._log_prob = (a[-self.capacity :] for a in new)

    def draw(self, num_rows: int) -> Replayed:
        """Different rows, each as likely as its weight says."""
        checks.positive_int(type(self).__name__, num_rows=num_rows)
        if num_rows > len(self):
            raise ValueError(f"ReplayBuffer holds {len(self)} rows, asked for {num_rows}.")
        # the largest of weights times exponential noise are a draw without replacement
        keys = self._log_weight + self._generator.gumbel(size=len(self))
        rows = np.argpartition(-keys, num_rows - 1)[:num_rows]
        return Replayed(rows, self._x[rows], self._log_prob[rows])

    def correct(self, rows: np.ndarray, log_prob: Any) -> np.ndarray:
        """The factors of rows for the flow that gives them this ``log_prob``, and their new weights."""
        log_prob = _host(log_prob, float)
        moved = (self.power - 1) * (self._log_prob[rows] - log_prob)
        good = np.isfinite(moved)
        self._log_weight[rows] = np.where(good, self._log_weight[rows] + moved, -np.inf)
        self._log_prob[rows] = np.where(good, log_prob, self._log_prob[rows])
        return np.where(good, np.minimum(np.exp(np.minimum(moved, 700)), self.largest), 0)


def _host(array: Any, dtype: Any = None) -> np.ndarray:
    return np.array(array.numpy(force=True) if hasattr(array, "detach") else array, dtype)

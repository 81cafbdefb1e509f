"""The classifier of C2ST as scikit-learn trains it, with an epoch compiled in JAX.

Rules and random numbers are those of ``MLPClassifier(hidden_layer_sizes, max_iter=max_iter,
random_state=random_state)``: the same start, the same order of rows, Adam and stopping; in float32.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator, ClassifierMixin

RATE, ALPHA, BATCH_SIZE, TOLERANCE, PATIENCE = 1e-3, 1e-4, 200, 1e-4, 10
OPTIMIZER = optax.flatten(optax.adam(RATE))

Layers = list[tuple[jax.Array, jax.Array]]


class Classifier(ClassifierMixin, BaseEstimator):
    """ReLU units in ``hidden_layer_sizes`` layers that tell rows of label 1 from those of label 0."""

    def __init__(
        self, hidden_layer_sizes: tuple[int, ...], max_iter: int = 1000, random_state: int = 0
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, x: np.ndarray, labels: np.ndarray) -> "Classifier":
        random = np.random.RandomState(self.random_state)
        layers = started(random, (x.shape[1], *self.hidden_layer_sizes, 1))
        state = OPTIMIZER.init(layers)
        order, best, waited = np.arange(len(x)), np.inf, 0
        self.classes_, self.loss_curve_ = np.unique(labels), []
        while len(self.loss_curve_) < self.max_iter and waited <= PATIENCE:
            order = order[random.permutation(len(x))]
            layers, state, loss = epoch(layers, state, *batches(x, labels, order))
            self.loss_curve_.append(float(loss) / len(x))
            waited = waited + 1 if self.loss_curve_[-1] > best - TOLERANCE else 0
            best = min(best, self.loss_curve_[-1])
        self.layers_ = layers
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        positive = np.asarray(jax.nn.sigmoid(logits(self.layers_, jnp.float32(x.T))), np.float64)
        return np.stack([1 - positive, positive], -1)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.classes_[self.predict_proba(x).argmax(-1)]


def started(random: np.random.RandomState, sizes: tuple[int, ...]) -> Layers:
    """Weights and biases, uniform as Glorot and Bengio (2010) have them."""
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        bound = np.sqrt(6 / (fan_in + fan_out))
        weight = random.uniform(-bound, bound, (fan_in, fan_out))
        bias = random.uniform(-bound, bound, fan_out)
        layers.append((jnp.float32(weight), jnp.float32(bias)))
    return layers


def batches(x: np.ndarray, labels: np.ndarray, order: np.ndarray) -> Any:
    """Rows, labels and weights in batches; the last one is filled up with rows of weight 0."""
    size = min(BATCH_SIZE, len(x))
    count = -(-len(x) // size)
    rows = np.resize(order, count * size)
    weights = np.float32(np.arange(len(rows)) < len(x))
    shaped = (np.float32(x[rows]), np.float32(labels[rows]), weights)
    return [part.reshape(count, size, *part.shape[1:]) for part in shaped]


def logits(layers: Layers, x: jax.Array) -> jax.Array:
    """Of rows that lie in columns, which few units leave faster."""
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(weight.T @ x + bias[:, None])
    weight, bias = layers[-1]
    return (weight.T @ x)[0] + bias


@partial(jax.jit, donate_argnums=(0, 1))
def epoch(layers: Layers, state: Any, x: jax.Array, labels: jax.Array, weights: jax.Array) -> Any:
    """A step for each batch; the loss summed over rows, each at the weights of its step."""

    def loss(layers: Layers, x: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        score = logits(layers, x)
        entropies = jax.nn.softplus(score) - labels * score
        squares = sum(jnp.sum(weight**2) for weight, _ in layers)
        return (jnp.sum(weights * entropies) + ALPHA / 2 * squares) / jnp.sum(weights)

    def step(carry: Any, batch: Any) -> Any:
        layers, state = carry
        value, gradient = jax.value_and_grad(loss)(layers, *batch)
        updates, state = OPTIMIZER.update(gradient, state)
        return (optax.apply_updates(layers, updates), state), value * jnp.sum(batch[-1])

    columns = jnp.swapaxes(x, 1, 2)
    (layers, state), losses = jax.lax.scan(step, (layers, state), (columns, labels, weights))
    return layers, state, jnp.sum(losses)

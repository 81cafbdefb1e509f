"""Networks that are functions with weights of their own: of haiku, Flax and stax.

Such a function does not say what it computes, so its linear layers are put together in every way in which
their shapes fit, with every activation, until they give what it gives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers.networks import Linear
from flow_bridge.importers.reading import ACTIVATIONS, as_array, jax_call

WEIGHTS, BIASES = ("w", "kernel"), ("b", "bias")
ROWS, TOLERANCE, MANY_LAYERS = 8, 1e-10, 6
FAR = 100


def weights_for(networks: Sequence[Any], given: Sequence[Any] | None, where: str) -> list[Any]:
    """The weights of networks: what was given, one for each, or else what they hold."""
    weights = [weights_of(net, where) for net in networks] if given is None else list(given)
    if len(weights) != len(networks):
        raise UnsupportedModel(
            f"{where}: the model has {len(networks)} of them, and {len(weights)} weights were given."
        )
    return weights


def weights_of(function: Any, where: str) -> Any:
    """The weights that a ``functools.partial`` holds, as ``partial(network.apply, weights)`` does."""
    held: list[Any] = []
    while isinstance(function, partial):
        held += [*function.args, *function.keywords.values()]
        function = function.func
    found = [value for value in held if [*linear_layers(value)] or is_blocks(value)]
    if len(found) != 1:
        raise UnsupportedModel(
            f"{where} has a network whose weights cannot be seen: make it functools.partial(apply, "
            "weights), or pass weights=[...], one for each."
        )
    return found[0]


def is_blocks(weights: Any) -> bool:
    """Whether nested lists hold layers with a scale for each output, as those of numpyro's BNAF do."""
    if not isinstance(weights, list | tuple):
        return False
    if len(weights) == 3 and [getattr(item, "ndim", 0) for item in weights] == [2, 1, 1]:
        return True
    return any(is_blocks(item) for item in weights)


def network(
    function: Callable[..., Any],
    weights: Any,
    in_dim: int,
    masks: Sequence[np.ndarray] | None,
    where: str,
) -> tuple[list[Linear], str]:
    """Layers and activation of a function of rows, of which all but the leading axis of its result is one.

    Args:
        function: in JAX.
        weights: what it computes with, of haiku, Flax or stax.
        in_dim: width of its input.
        masks: of its layers, ``(in, out)``, where they are masked.
        where: what a message calls its owner.
    """
    rows = np.random.default_rng(0).normal(size=(ROWS, in_dim)) * 1.5
    rows[ROWS // 2 :] *= FAR  # where a ReLU6, say, is no ReLU
    expected = jax_call(function, rows).reshape(ROWS, -1)
    layers = [*linear_layers(weights)]
    widths = [in_dim, expected.shape[1]]
    orders = permutations(layers) if len(layers) <= MANY_LAYERS else [tuple(layers)]
    for order in orders:
        shapes = [weight.shape for weight, _ in order]
        chained = all(below[1] == above[0] for below, above in pairwise(shapes))
        if not chained or [shapes[0][0], shapes[-1][1]] != widths:
            continue
        given = [None] * len(order) if masks is None else masks
        if any(m is not None and m.shape != s for m, s in zip(given, shapes, strict=True)):
            continue
        found = [
            Linear(weight.T, bias, None if mask is None else mask.T)
            for (weight, bias), mask in zip(order, given, strict=True)
        ]
        for name, activation in ACTIVATIONS.items():
            if _agree(_evaluate(found, activation, rows), expected):
                return found, name
    raise UnsupportedModel(
        f"{where} has a network that is not linear layers with one of twinflows' activations between them."
    )


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE))


def _evaluate(
    layers: Sequence[Linear], activation: Callable[[np.ndarray], np.ndarray], x: np.ndarray
) -> np.ndarray:
    for i, layer in enumerate(layers):
        weight = layer.weight if layer.mask is None else np.where(layer.mask, layer.weight, 0)
        x = (activation(x) if i else x) @ weight.T + layer.bias
    return x


def linear_layers(weights: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights ``(in, out)`` and biases, wherever they are in nested dictionaries and lists."""
    if isinstance(weights, Mapping):
        named = [weights[name] for name in WEIGHTS if name in weights]
        if len(named) == 1 and getattr(named[0], "ndim", 0) == 2:
            bias = next((weights[name] for name in BIASES if name in weights), None)
            yield _pair(named[0], bias)
        else:
            for item in weights.values():
                yield from linear_layers(item)
    elif isinstance(weights, list | tuple):
        if len(weights) == 2 and [getattr(item, "ndim", 0) for item in weights] == [2, 1]:
            yield _pair(*weights)
        else:
            for item in weights:
                yield from linear_layers(item)


def _pair(weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:
    weight = as_array(weight)
    return weight, np.zeros(weight.shape[1]) if bias is None else as_array(bias)

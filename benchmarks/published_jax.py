"""TarFlow and Jet as one writes them in a single file: the arithmetic of the papers, restated.

As ``published_torch``, in functions of ``jax.numpy``: blocks one after another, samples by a scan over tokens
with keys and values of all places (``cached``), or by a pass of all of them for each.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

START = 0.1
"""Factor of the first weights of the last layers, which are no zeros, so that checks say something."""


def linear(key: Array, width_in: int, width_out: int, factor: float = 1.0) -> dict[str, Array]:
    bound = factor * width_in**-0.5
    a, b = jax.random.split(key)
    return {
        "w": jax.random.uniform(a, (width_in, width_out), jnp.float32, -bound, bound),
        "b": jax.random.uniform(b, (width_out,), jnp.float32, -bound, bound),
    }


def apply(layer: dict[str, Array], x: Array) -> Array:
    return x @ layer["w"] + layer["b"]


def norm(layer: dict[str, Array], x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * layer["w"] + layer["b"]


@dataclass(frozen=True)
class Network:
    """Tokens ``(rows, tokens, in_dim)`` to outputs of as many tokens."""

    num_tokens: int
    in_dim: int
    out_dim: int
    width: int
    depth: int
    num_heads: int
    causal: bool

    def init(self, key: Array) -> dict[str, Any]:
        keys, width = iter(jax.random.split(key, 3 + 4 * self.depth)), self.width
        plain = {"w": jnp.ones(width), "b": jnp.zeros(width)}
        blocks = [
            {
                "norm": plain,
                "qkv": linear(next(keys), width, 3 * width),
                "project": linear(next(keys), width, width),
                "second_norm": plain,
                "expand": linear(next(keys), width, 4 * width),
                "contract": linear(next(keys), 4 * width, width),
            }
            for _ in range(self.depth)
        ]
        return {
            "embed": linear(next(keys), self.in_dim, width),
            "read": linear(next(keys), width, self.out_dim, START),
            "positions": 1e-2 * jax.random.normal(next(keys), (self.num_tokens, width)),
            "blocks": jax.tree.map(jnp.copy, blocks),
            **({} if self.causal else {"norm": jax.tree.map(jnp.copy, plain)}),
        }

    def block(self, layer: dict[str, Any], h: Array, mask: Any, caches: Any, t: Any) -> Any:
        """One block, and its keys and values, those of the caches with t's own if there are any."""
        parts = apply(layer["qkv"], norm(layer["norm"], h))
        q, k, v = jnp.moveaxis(parts.reshape(*h.shape[:2], 3, self.num_heads, -1), 2, 0)
        if caches is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(a, b, t, 1)
                for a, b in zip(caches, (k, v), strict=True)
            )
        found = jax.nn.dot_product_attention(q, k, v, mask=mask)
        h = h + apply(layer["project"], found.reshape(h.shape))
        wide = apply(layer["expand"], norm(layer["second_norm"], h))
        return h + apply(layer["contract"], jax.nn.gelu(wide, approximate=False)), (k, v)

    def __call__(self, params: dict[str, Any], x: Array) -> Array:
        h = apply(params["embed"], x) + params["positions"]
        mask = jnp.tril(jnp.ones((h.shape[1], h.shape[1]), bool)) if self.causal else None
        for layer in params["blocks"]:
            h, _ = self.block(layer, h, mask, None, 0)
        h = h if self.causal else norm(params["norm"], h)
        return apply(params["read"], h)

    def step(self, params: dict[str, Any], t: Array, x: Array, caches: Any) -> Any:
        """The output of token t alone, ``(rows, 1, out_dim)``, and the caches with it."""
        h = apply(params["embed"], x) + jax.lax.dynamic_slice_in_dim(params["positions"], t, 1)
        mask, new = jnp.arange(self.num_tokens) <= t, []
        for layer, cache in zip(params["blocks"], caches, strict=True):
            h, pair = self.block(layer, h, mask, cache, t)
            new.append(pair)
        return apply(params["read"], h), new


@dataclass(frozen=True)
class AutoregressiveLayer:
    """z_t = (x_t - b) exp(-a), (a, b) read at token t - 1."""

    network: Network
    flip: bool

    def forward(self, params: Any, x: Array) -> tuple[Array, Array]:
        x = x[:, ::-1] if self.flip else x
        out = self.network(params, x)
        out = jnp.concatenate([jnp.zeros_like(out[:, :1]), out[:, :-1]], 1)
        shift, log_scale = jnp.split(out, 2, -1)
        z = (x - shift) * jnp.exp(-log_scale)
        return z[:, ::-1] if self.flip else z, -log_scale.sum((1, 2))

    def inverse(self, params: Any, z: Array, cached: bool) -> Array:
        z = z[:, ::-1] if self.flip else z
        network, count = self.network, z.shape[1]
        shape = len(z), count, network.num_heads, network.width // network.num_heads

        def step(carry: Any, t: Array) -> Any:
            x, caches = carry
            if cached:
                last = jax.lax.dynamic_slice_in_dim(x, t, 1, 1)
                out, caches = network.step(params, t, last, caches)
            else:
                out = jax.lax.dynamic_slice_in_dim(network(params, x), t, 1, 1)
            shift, log_scale = jnp.split(out, 2, -1)
            own = jax.lax.dynamic_slice_in_dim(z, t + 1, 1, 1) * jnp.exp(log_scale) + shift
            return (jax.lax.dynamic_update_slice_in_dim(x, own, t + 1, 1), caches), None

        caches = [(jnp.zeros(shape), jnp.zeros(shape)) for _ in params["blocks"]] if cached else []
        first = jnp.zeros_like(z).at[:, 0].set(z[:, 0]), caches
        (x, _), _ = jax.lax.scan(step, first, jnp.arange(count - 1))
        return x[:, ::-1] if self.flip else x


@dataclass(frozen=True)
class CouplingLayer:
    """The free half becomes (x + b) 2 sigmoid(s): half of the channels of every token, or half of the tokens.

    These are an even number.
    """

    network: Network
    order: tuple[int, ...]
    axis: int

    def split(self, params: Any, x: Array) -> tuple[Array, ...]:
        fixed, free = jnp.split(x.take(np.array(self.order), self.axis), 2, self.axis)
        return fixed, free, *jnp.split(self.network(params, fixed), 2, -1)

    def joined(self, fixed: Array, free: Array) -> Array:
        return jnp.concatenate([fixed, free], self.axis).take(np.argsort(self.order), self.axis)

    def forward(self, params: Any, x: Array) -> tuple[Array, Array]:
        fixed, free, shift, raw = self.split(params, x)
        log_scale = jax.nn.log_sigmoid(raw) + math.log(2)
        return self.joined(fixed, (free + shift) * jnp.exp(log_scale)), log_scale.sum((1, 2))

    def inverse(self, params: Any, z: Array, cached: bool) -> Array:
        fixed, free, shift, raw = self.split(params, z)
        return self.joined(fixed, free / (2 * jax.nn.sigmoid(raw)) - shift)


@dataclass(frozen=True)
class Flow:
    """Layers of the patches of images, and a standard normal."""

    model: str
    shape: tuple[int, int, int]
    patch: int
    num_layers: int
    options: tuple[int, int, int]

    @property
    def grid(self) -> tuple[int, int]:
        return self.shape[1] // self.patch, self.shape[2] // self.patch

    @property
    def layers(self) -> list[Any]:
        count, channels = math.prod(self.grid), self.shape[0] * self.patch**2
        if self.model == "tarflow":
            network = Network(count, channels, 2 * channels, *self.options, True)
            return [AutoregressiveLayer(network, i % 2 == 1) for i in range(self.num_layers)]
        layers, generator = [], np.random.default_rng(0)
        halves = [generator.permutation(channels) for _ in range(2)]
        rows, columns = np.divmod(np.arange(count), self.grid[1])
        for i in range(self.num_layers):
            if i % 5 == 4:
                order = np.argsort((rows + columns + i // 5) % 2, kind="stable")
                network = Network(count // 2, channels, 2 * channels, *self.options, False)
                layers.append(CouplingLayer(network, tuple(order.tolist()), 1))
            else:
                order = halves[i % 5 // 2][:: 1 if i % 2 else -1]
                network = Network(count, channels // 2, channels, *self.options, False)
                layers.append(CouplingLayer(network, tuple(order.tolist()), 2))
        return layers

    def init(self, key: Array) -> list[Any]:
        keys = jax.random.split(key, self.num_layers)
        return [layer.network.init(key) for layer, key in zip(self.layers, keys, strict=True)]

    def tokens(self, x: Array) -> Array:
        a, b = self.grid
        x = x.reshape(-1, self.shape[0], a, self.patch, b, self.patch)
        return x.transpose(0, 2, 4, 1, 3, 5).reshape(len(x), a * b, -1)

    def image(self, tokens: Array) -> Array:
        x = tokens.reshape(-1, *self.grid, self.shape[0], self.patch, self.patch)
        return x.transpose(0, 3, 1, 4, 2, 5).reshape(-1, *self.shape)

    def forward(self, params: list[Any], x: Array) -> tuple[Array, Array]:
        z, log_det = self.tokens(x), jnp.zeros(len(x))
        for layer, own in zip(self.layers, params, strict=True):
            z, term = layer.forward(own, z)
            log_det = log_det + term
        return self.image(z), log_det

    def inverse(self, params: list[Any], z: Array, cached: bool) -> Array:
        x = self.tokens(z)
        for layer, own in reversed(list(zip(self.layers, params, strict=True))):
            x = layer.inverse(own, x, cached)
        return self.image(x)

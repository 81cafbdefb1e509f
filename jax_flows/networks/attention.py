"""Transformers: networks of tokens that attend to each other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import attention as bridge
from flow_bridge import checks
from flow_bridge.layouts import stack_name
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.mlp import SAVED, matmul, normalize
from jax_flows.numerics import at_least_float32, conditioner_operands
from jax_flows.registry import register_network
from jax_flows.variables import Variables, linear_shapes, stacked_shapes

Params = Mapping[str, Any]


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """softmax(q k^T / sqrt(width)) v, of each head.

    Args:
        q: shape ``(*batch, heads, tokens, width)``.
        k, v: the same, of any number of tokens.
        mask: which of these each q sees, at least one; all if not given.
    """
    a, b, options = conditioner_operands(q * q.shape[-1] ** -0.5, k.swapaxes(-1, -2))
    scores = at_least_float32(jnp.matmul(a, b, **options))
    if mask is not None:
        scores = jnp.where(mask, scores, -math.inf)
    a, b, options = conditioner_operands(jax.nn.softmax(scores).astype(q.dtype), v)
    return jnp.matmul(a, b, **options)


def _linear(layer: Params, x: Array) -> Array:
    if x.shape[-2] == 1:  # one token: turning a kernel over, as ``matmul`` does, would take longest
        a, b, options = conditioner_operands(x, layer["kernel"])
        out = jnp.matmul(a, b, **options)
    else:
        out = matmul(x, layer["kernel"])
    return out + layer["bias"] if "bias" in layer else out


def _normalize(layer: Params, x: Array) -> Array:
    return normalize(x, layer["scale"], layer["bias"])


@dataclass(frozen=True)
class AttentionBlock:
    """h + attention(norm(h)), and then h + MLP(norm(h)), of tokens ``(*batch, tokens, hidden_dim)``."""

    hidden_dim: int
    num_heads: int
    activation: str

    def shapes(self, dtype: Any) -> dict[str, Any]:
        """The shapes of the weights."""
        wide = bridge.EXPANSION * self.hidden_dim
        # no bias: that of the keys would move no result
        qkv = jax.ShapeDtypeStruct((self.hidden_dim, 3 * self.hidden_dim), dtype)
        row = jax.ShapeDtypeStruct((self.hidden_dim,), dtype)
        linear = {
            "projection": (self.hidden_dim, self.hidden_dim),
            "expand": (self.hidden_dim, wide),
            "contract": (wide, self.hidden_dim),
        }
        norms = {name: {"scale": row, "bias": row} for name in ("attention_norm", "mlp_norm")}
        return {"qkv": {"kernel": qkv}, **norms, **linear_shapes(linear, dtype)}

    def __call__(self, layer: Params, h: Array, mask: Array | None) -> Array:
        q, k, v = self.heads(layer, h)
        return self.finish(layer, h, attend(q, k, v, mask))

    def step(
        self, layer: Params, h: Array, caches: Array, i: Array, t: Array
    ) -> tuple[Array, Array]:
        """What token t becomes, ``(batch, 1, hidden_dim)``; the caches with its key and value in block i."""
        q, *new = self.heads(layer, h)
        pair = jnp.stack(new)[None]
        caches = jax.lax.dynamic_update_slice(caches, pair, (i, 0, 0, 0, t, 0))
        k, v = jax.lax.dynamic_index_in_dim(caches, i, keepdims=False)
        known = jnp.arange(caches.shape[-2]) <= t
        return self.finish(layer, h, attend(q, k, v, known)), caches

    def heads(self, layer: Params, h: Array) -> tuple[Array, ...]:
        """Queries, keys and values, ``(*batch, heads, tokens, width)``."""
        qkv = _linear(layer["qkv"], _normalize(layer["attention_norm"], h))
        width = self.hidden_dim // self.num_heads
        qkv = qkv.reshape(*h.shape[:-1], 3, self.num_heads, width)
        return tuple(qkv[..., i, :, :].swapaxes(-3, -2) for i in range(3))

    def finish(self, layer: Params, h: Array, found: Array) -> Array:
        """The rest of the block, given what the heads found."""
        h = h + _linear(layer["projection"], found.swapaxes(-3, -2).reshape(h.shape))
        wide = _linear(layer["expand"], _normalize(layer["mlp_norm"], h))
        return h + _linear(layer["contract"], ACTIVATIONS[self.activation](wide))


@dataclass(frozen=True)
class TokenNetwork:
    """What transformers share: tokens and positions are embedded, pass through blocks, and are read out.

    The blocks' weights are stacked and scanned over, so that compile time does not grow with depth.

    Attributes:
        final_norm: whether a layer normalisation precedes the reading.
    """

    in_dim: int
    out_dim: int
    num_tokens: int
    hidden_dim: int
    num_blocks: int
    num_heads: int
    activation: str
    context_dim: int
    initial_scale: float

    final_norm: ClassVar[bool] = True

    @property
    def block(self) -> AttentionBlock:
        """What the blocks are, without weights."""
        return AttentionBlock(self.hidden_dim, self.num_heads, self.activation)

    @property
    def blocks(self) -> str:
        """The key of the blocks' weights."""
        return stack_name("blocks", range(self.num_blocks)) if self.num_blocks > 1 else "blocks_0"

    def shapes(self, dtype: Any) -> dict[str, Any]:
        """The shapes of the weights."""
        linear = {
            "embed": (self.in_dim, self.hidden_dim),
            "read": (self.hidden_dim, self.out_dim),
        }
        if self.context_dim:
            linear["embed_context"] = self.context_dim, self.hidden_dim
        own: Any = self.block.shapes(dtype)
        row = jax.ShapeDtypeStruct((self.hidden_dim,), dtype)
        return {
            **({"norm": {"scale": row, "bias": row}} if self.final_norm else {}),
            "positions": jax.ShapeDtypeStruct((self.num_tokens, self.hidden_dim), dtype),
            self.blocks: stacked_shapes(own, self.num_blocks) if self.num_blocks > 1 else own,
            **linear_shapes(linear, dtype),
        }

    def init_part(self, key: Array, name: str, dtype: Any) -> Any:
        """Fresh weights under one key of ``shapes``, as PyTorch's layers start."""
        shapes = self.shapes(dtype)[name]
        if not isinstance(shapes, Mapping):
            return bridge.POSITION_SCALE * jax.random.normal(key, shapes.shape, dtype)
        if name != self.blocks:
            factor = self.initial_scale if name == "read" else 1.0
            return _init_layer(key, shapes, dtype, factor)
        keys = jax.random.split(key, len(shapes))
        return {
            own: _init_layer(key, layer, dtype)
            for key, (own, layer) in zip(keys, shapes.items(), strict=True)
        }

    def init(self, key: Array, dtype: Any) -> dict[str, Any]:
        """Fresh weights."""
        names = sorted(self.shapes(dtype))
        keys = jax.random.split(key, len(names))
        return {
            name: self.init_part(key, name, dtype) for name, key in zip(names, keys, strict=True)
        }

    def context_term(self, params: Params, context: Array) -> Array:
        """What a context adds to every token, ``(*batch, 1, hidden_dim)``."""
        return _linear(params["embed_context"], context[..., None, :])

    def run(
        self, params: Params, h: Array, context: Array | None, mask: Array | None = None
    ) -> Array:
        """From embedded tokens ``(*batch, tokens, hidden_dim)`` to what is read out of them."""
        h = h + params["positions"]
        if context is not None:
            h = h + self.context_term(params, context)

        # the backward pass keeps the products and computes the rest anew, as in ``apply_layers``
        @partial(jax.checkpoint, policy=SAVED)
        def step(h: Array, layer: Params) -> tuple[Array, None]:
            return self.block(layer, h, mask), None

        layers = params[self.blocks]
        h = step(h, layers)[0] if self.num_blocks == 1 else jax.lax.scan(step, h, layers)[0]
        h = _normalize(params["norm"], h) if self.final_norm else h
        return _linear(params["read"], h)


def _init_layer(key: Array, shapes: Params, dtype: Any, factor: float = 1.0) -> dict[str, Array]:
    """A linear layer uniform within 1 / sqrt(in_dim), times a factor, or a layer normalisation."""
    if "scale" in shapes:
        return {
            "scale": jnp.ones(shapes["scale"].shape, dtype),
            "bias": jnp.zeros(shapes["bias"].shape, dtype),
        }
    bound = factor * shapes["kernel"].shape[-2] ** -0.5
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(key, shapes[name].shape, dtype, -bound, bound)
        for key, name in zip(keys, sorted(shapes), strict=True)
    }


@register_network
class Transformer(nn.Module):
    """A transformer whose tokens all see each other: ``(*batch, in_dim)`` to ``(*batch, out_dim)``.

    The input holds one token after the other, ``num_tokens`` of equal width, and so does the output: a
    conditioner of couplings of patches. Blocks h + attention(norm(h)), h + MLP(norm(h)), without
    dropout, and a last normalisation; learned embeddings of the positions.

    Args:
        in_dim, out_dim: the widths of input and output, multiples of ``num_tokens``.
        num_tokens: how many tokens the input holds.
        hidden_dim: width of the tokens inside, a multiple of ``num_heads``.
        num_blocks: number of blocks.
        num_heads: heads of the attention.
        activation: of the MLPs, a name in ``ACTIVATIONS``.
        context_dim: width of the context, which is embedded and added to every token; 0 for none.
        num_parameters: of a coupling, whose order of parameters the output then has.
        initial_scale: factor of the last layer's first weights; with 0 most maps start as the identity.

    Raises:
        ValueError: for an unknown activation, a number below 1, and widths that are no multiples.

    Reference: Vaswani et al. (2017), arXiv:1706.03762; Kolesnikov et al. (2024), Jet, arXiv:2412.15129.

    Examples:
        >>> import jax, jax_flows
        >>> net = jax_flows.Transformer(in_dim=12, out_dim=8, num_tokens=4, hidden_dim=16)
        >>> x = jax.numpy.zeros((5, 12))
        >>> net.apply(net.init(jax.random.key(0), x), x).shape
        (5, 8)
    """

    event_ndim = 1

    in_dim: int
    out_dim: int
    num_tokens: int
    hidden_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    activation: str = "gelu"
    context_dim: int = 0
    num_parameters: int = 1
    initial_scale: float = 0.0

    def __post_init__(self) -> None:
        tokens, parameters = self.num_tokens, self.num_parameters
        checks.positive_int("Transformer", num_tokens=tokens, num_parameters=parameters)
        checks.divisible("Transformer", tokens, in_dim=self.in_dim)
        checks.divisible("Transformer", tokens * parameters, out_dim=self.out_dim)
        check_network("Transformer", self)
        super().__post_init__()

    @property
    def tokens(self) -> TokenNetwork:
        """The network of tokens."""
        return TokenNetwork(
            self.in_dim // self.num_tokens,
            self.out_dim // self.num_tokens,
            self.num_tokens,
            self.hidden_dim,
            self.num_blocks,
            self.num_heads,
            self.activation,
            self.context_dim,
            self.initial_scale,
        )

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        return {"params": self.tokens.shapes(dtype)}

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Args: x, and a context of its batch shape."""
        network = self.tokens
        params = _params(self, network, x.dtype)
        tokens = x.reshape(*x.shape[:-1], self.num_tokens, network.in_dim)
        out = network.run(params, _linear(params["embed"], tokens), context)
        width = network.out_dim // self.num_parameters
        out = out.reshape(*out.shape[:-1], self.num_parameters, width)
        return out.swapaxes(-3, -2).reshape(*x.shape[:-1], self.out_dim)


@register_network
class ImageTransformer(nn.Module):
    """A transformer whose tokens are the pixels of images: ``(*batch, in_dim, height, width)`` to
    ``(*batch, out_dim, height, width)``.

    A conditioner of couplings of images. After ``Squeeze(n)`` every n x n patch is one pixel, one token.

    Args:
        in_dim, out_dim: numbers of channels.
        num_tokens: height times width.
        hidden_dim, num_blocks, num_heads, activation, context_dim, initial_scale: as in ``Transformer``.

    Raises:
        ValueError: as ``Transformer``.

    Reference: Kolesnikov et al. (2024), Jet, arXiv:2412.15129.
    """

    event_ndim = 3

    in_dim: int
    out_dim: int
    num_tokens: int
    hidden_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    activation: str = "gelu"
    context_dim: int = 0
    initial_scale: float = 0.0

    def __post_init__(self) -> None:
        checks.positive_int("ImageTransformer", num_tokens=self.num_tokens)
        check_network("ImageTransformer", self)
        super().__post_init__()

    @property
    def tokens(self) -> TokenNetwork:
        """The network of tokens."""
        return TokenNetwork(
            self.in_dim,
            self.out_dim,
            self.num_tokens,
            self.hidden_dim,
            self.num_blocks,
            self.num_heads,
            self.activation,
            self.context_dim,
            self.initial_scale,
        )

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        return {"params": self.tokens.shapes(dtype)}

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Args: x, and a context of its batch shape."""
        *batch, channels, height, width = x.shape
        network = self.tokens
        params = _params(self, network, x.dtype)
        if self.is_initializing():  # with an image of any size
            return x
        bridge.check_pixels(self.num_tokens, (height, width))
        tokens = x.reshape(*batch, channels, height * width).swapaxes(-1, -2)
        out = network.run(params, _linear(params["embed"], tokens), context)
        return out.swapaxes(-1, -2).reshape(*batch, self.out_dim, height, width)


def _params(module: nn.Module, network: TokenNetwork, dtype: Any) -> dict[str, Any]:
    """The weights of a network of tokens, as a module's parameters."""
    return {
        name: module.param(name, network.init_part, name, dtype) for name in network.shapes(dtype)
    }


def check_network(owner: str, network: Any) -> None:
    """Check the arguments that all transformers have."""
    stack = network.hidden_dim, network.num_blocks, network.num_heads
    bridge.check_transformer(owner, *stack, network.context_dim)
    checks.one_of(owner, "activation", network.activation, ACTIVATIONS)
    checks.non_negative_number(owner, initial_scale=network.initial_scale)


@dataclass(frozen=True)
class CausalTransformer(TokenNetwork):
    """A transformer of tokens ``(*batch, num_tokens, in_dim)`` whose outputs see the tokens before theirs.

    Output t, of shape ``(*batch, num_tokens, out_dim)``, is read at the place of token t - 1, the first
    one at that of a learned beginning.
    """

    final_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_network("TransformerAutoregressive", self)

    def shapes(self, dtype: Any) -> dict[str, Any]:
        beginning = jax.ShapeDtypeStruct((self.hidden_dim,), dtype)
        return {"beginning": beginning, **super().shapes(dtype)}

    def __call__(self, params: Params, tokens: Array, context: Array | None) -> Array:
        """Args: all tokens, and a context of their batch shape."""
        h = _linear(params["embed"], tokens[..., :-1, :])
        first = jnp.broadcast_to(params["beginning"], (*h.shape[:-2], 1, self.hidden_dim))
        place = jnp.arange(self.num_tokens)
        h = jnp.concatenate([first, h], -2)
        return self.run(params, h, context, place[:, None] >= place)

    def caches(self, like: Array) -> Array:
        """Keys and values of all blocks and tokens, for rows of ``like``, still unknown."""
        shape = self.num_heads, self.num_tokens, self.hidden_dim // self.num_heads
        return jnp.zeros((self.num_blocks, 2, like.shape[0], *shape), like.dtype)

    def step(
        self, params: Params, t: Array, token: Array, term: Array | None, caches: Array
    ) -> tuple[Array, Array]:
        """Output t, ``(batch, out_dim)``, and the caches with token t.

        Args:
            params: the weights.
            t: how many tokens are known.
            token: the last of them, ``(batch, in_dim)``, anything at first.
            term: what the context adds.
            caches: of the steps before.
        """
        h = jnp.where(t == 0, params["beginning"], _linear(params["embed"], token[:, None]))
        h = h + jax.lax.dynamic_index_in_dim(params["positions"], t, keepdims=False)
        h = h if term is None else h + term

        def through(carry: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], None]:
            return self.block.step(block[1], *carry, block[0], t), None

        layers = params[self.blocks]
        if self.num_blocks == 1:
            (h, caches), _ = through((h, caches), (jnp.zeros((), int), layers))
        else:
            blocks = jnp.arange(self.num_blocks), layers
            (h, caches), _ = jax.lax.scan(through, (h, caches), blocks)
        return _linear(params["read"], h)[:, 0], caches

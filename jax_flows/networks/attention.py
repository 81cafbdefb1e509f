"""Transformers: networks of tokens that attend to each other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import attention as bridge
from flow_bridge import checks
from flow_bridge.layouts import stack_name
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.mlp import EPS, SAVED, matmul, normalize, uniform
from jax_flows.numerics import at_least_float32, conditioner_operands
from jax_flows.registry import register_network
from jax_flows.variables import Variables, draws, linear_shapes, stacked_shapes

Params = Mapping[str, Any]
Memory = tuple[Array, ...] | None
"""Keys and values of a context, ``(*batch, heads, tokens, width)``."""


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


def rotate(x: Array, turns: Array) -> Array:
    """Turn each pair of entries, one of either half of a head, by the angle of its place.

    Args:
        x: shape ``(*batch, heads, tokens, width)``.
        turns: the cosines and sines, ``(2, tokens, width / 2)``.
    """
    wide = at_least_float32(x)
    cos, sin = turns.astype(wide.dtype)
    a, b = jnp.split(wide, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


def _root_normalize(layer: Params, x: Array) -> Array:
    """x / sqrt(mean(x^2) + eps) of the last axis, times a learned scale."""
    wide = at_least_float32(x)
    mean = jnp.square(wide).mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean + EPS)).astype(x.dtype) * layer["scale"]


@dataclass(frozen=True)
class AttentionBlock:
    """h + attention(norm(h)), and then h + MLP(norm(h)), of tokens ``(*batch, tokens, hidden_dim)``.

    Where the context is crossed, h + attention(norm(h), context) stands between them.
    """

    options: bridge.Blocks

    def shapes(self, dtype: Any) -> dict[str, Any]:
        """The shapes of the weights."""
        options = self.options
        dim, wide = options.hidden_dim, bridge.EXPANSION * options.hidden_dim
        # no bias: that of the keys would move no result
        products = {"qkv": (dim, 3 * dim)}
        linear = {
            "projection": (dim, dim),
            "expand": (dim, 2 * wide if options.gated else wide),
            "contract": (wide, dim),
        }
        norms, heads = ["attention_norm", "mlp_norm"], ["q_norm", "k_norm"]
        if options.crosses:
            products |= {"cross_q": (dim, dim), "cross_kv": (dim, 2 * dim)}
            linear["cross_projection"] = dim, dim
            norms.append("cross_norm")
        row, head = (jax.ShapeDtypeStruct((n,), dtype) for n in (dim, options.head_dim))
        return {
            **{n: {"kernel": jax.ShapeDtypeStruct(s, dtype)} for n, s in products.items()},
            **{name: {"scale": row, "bias": row} for name in norms},
            **({name: {"scale": head} for name in heads} if options.qk_norm else {}),
            **linear_shapes(linear, dtype),
        }

    def __call__(
        self,
        layer: Params,
        h: Array,
        mask: Array | None,
        turns: Array | None,
        context: Array | None,
    ) -> Array:
        q, k, v = self.heads(layer, h, turns)
        return self.finish(layer, h, attend(q, k, v, mask), self.memory(layer, context))

    def step(
        self,
        layer: Params,
        h: Array,
        caches: Array,
        i: Array,
        t: Array | int,
        mask: Array,
        turns: Array | None,
        memory: Memory,
    ) -> tuple[Array, Array]:
        """What tokens from t on become; the caches with their keys and values in block i."""
        q, *new = self.heads(layer, h, turns)
        pair = jnp.stack(new)[None]
        caches = jax.lax.dynamic_update_slice(caches, pair, (i, 0, 0, 0, t, 0))
        k, v = jax.lax.dynamic_index_in_dim(caches, i, keepdims=False)
        return self.finish(layer, h, attend(q, k, v, mask), memory), caches

    def heads(self, layer: Params, h: Array, turns: Array | None) -> tuple[Array, ...]:
        """Queries, keys and values, ``(*batch, heads, tokens, width)``."""
        q, k, v = self._split(_linear(layer["qkv"], _normalize(layer["attention_norm"], h)), 3)
        if self.options.qk_norm:
            q, k = _root_normalize(layer["q_norm"], q), _root_normalize(layer["k_norm"], k)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        return q, k, v

    def memory(self, layer: Params, context: Array | None) -> Memory:
        """Keys and values of a context that is crossed."""
        return None if context is None else self._split(_linear(layer["cross_kv"], context), 2)

    def finish(self, layer: Params, h: Array, found: Array, memory: Memory) -> Array:
        """The rest of the block, given what the heads found."""
        h = h + _linear(layer["projection"], found.swapaxes(-3, -2).reshape(h.shape))
        if memory is not None:
            (q,) = self._split(_linear(layer["cross_q"], _normalize(layer["cross_norm"], h)), 1)
            found = attend(q, *memory)
            h = h + _linear(layer["cross_projection"], found.swapaxes(-3, -2).reshape(h.shape))
        wide = _linear(layer["expand"], _normalize(layer["mlp_norm"], h))
        if self.options.gated:
            gate, wide = jnp.split(wide, 2, -1)
            wide = ACTIVATIONS[self.options.activation](gate) * wide
        else:
            wide = ACTIVATIONS[self.options.activation](wide)
        return h + _linear(layer["contract"], wide)

    def _split(self, x: Array, count: int) -> tuple[Array, ...]:
        """Heads of several parts side by side."""
        parts = x.reshape(*x.shape[:-1], count, self.options.num_heads, self.options.head_dim)
        return tuple(parts[..., i, :, :].swapaxes(-3, -2) for i in range(count))


class Steps(NamedTuple):
    """What the steps of an inverse keep.

    Attributes:
        term: what the context adds to every token.
        caches: keys and values of all blocks and places.
        memories: of all blocks, where the context is crossed.
    """

    term: Array | None
    caches: Array
    memories: Memory


@dataclass(frozen=True)
class TokenNetwork:
    """What transformers share: tokens and positions are embedded, pass through blocks, and are read out.

    The blocks' weights are stacked and scanned over, so that compile time does not grow with depth.

    Attributes:
        final_norm: whether a layer normalisation precedes the reading.
        owner: who refuses arguments, if not a module of Flax.
    """

    in_dim: int
    out_dim: int
    num_tokens: int
    options: bridge.Blocks

    final_norm: ClassVar[bool] = True
    owner: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.owner:
            self.options.check(self.owner, ACTIVATIONS, self.num_tokens)

    @property
    def block(self) -> AttentionBlock:
        """What the blocks are, without weights."""
        return AttentionBlock(self.options)

    @property
    def blocks(self) -> str:
        """The key of the blocks' weights."""
        count = self.options.num_blocks
        return stack_name("blocks", range(count)) if count > 1 else "blocks_0"

    def shapes(self, dtype: Any) -> dict[str, Any]:
        """The shapes of the weights."""
        options, dim = self.options, self.options.hidden_dim
        linear = {"embed": (self.in_dim, dim), "read": (dim, self.out_dim)}
        rows = {} if options.rotary else {"positions": self.num_tokens}
        if options.context_dim:
            linear["embed_context"] = options.context_dim // options.context_tokens, dim
            if options.context_tokens > 1:
                rows["context_positions"] = options.context_tokens
        own: Any = self.block.shapes(dtype)
        row, count = jax.ShapeDtypeStruct((dim,), dtype), options.num_blocks
        return {
            **({"norm": {"scale": row, "bias": row}} if self.final_norm else {}),
            **{name: jax.ShapeDtypeStruct((n, dim), dtype) for name, n in rows.items()},
            self.blocks: stacked_shapes(own, count) if count > 1 else own,
            **linear_shapes(linear, dtype),
        }

    def init(self, key: Array, dtype: Any) -> dict[str, Any]:
        """Fresh weights, as PyTorch's layers start: uniform within 1 / sqrt(in_dim)."""
        parts, tree = jax.tree.flatten(self.shapes(dtype), is_leaf=_is_layer)
        uniform_key, normal_key = jax.random.split(key)
        layers = [part for part in parts if _is_layer(part) and "kernel" in part]
        rows = [part.shape for part in parts if not _is_layer(part)]
        weights = iter(
            draws(uniform, uniform_key, [s.shape for own in layers for s in own.values()], dtype)
        )
        normal = iter(draws(jax.random.normal, normal_key, rows, dtype))

        def fresh(part: Any) -> Any:
            if not _is_layer(part):
                return bridge.POSITION_SCALE * next(normal)
            if "kernel" in part:
                bound = part["kernel"].shape[-2] ** -0.5
                return {name: bound * next(weights) for name in part}
            starts = {"scale": jnp.ones, "bias": jnp.zeros}
            return {name: starts[name](own.shape, dtype) for name, own in part.items()}

        made = jax.tree.unflatten(tree, [fresh(part) for part in parts])
        scale = self.options.initial_scale
        read = {n: scale * w if scale else jnp.zeros_like(w) for n, w in made["read"].items()}
        return {**made, "read": read}

    def context_of(self, params: Params, context: Array | None) -> Array | None:
        """The context as embedded tokens, ``(*batch, context_tokens, hidden_dim)``."""
        if context is None:
            return None
        count = self.options.context_tokens
        shape = *context.shape[:-1], count, context.shape[-1] // count
        h = _linear(params["embed_context"], context.reshape(shape))
        return h + params["context_positions"] if count > 1 else h

    @property
    def turns(self) -> Array | None:
        """The turns of all places, where they are rotary."""
        return jnp.asarray(self.options.turns(self.num_tokens)) if self.options.rotary else None

    def run(self, params: Params, h: Array, context: Array | None, causal: bool = False) -> Array:
        """From embedded tokens ``(*batch, tokens, hidden_dim)`` to what is read out of them.

        Args:
            params: the weights.
            h: the tokens.
            context: of their batch shape.
            causal: whether each sees but those before it, itself and the context.
        """
        options, known = self.options, self.context_of(params, context)
        h = h if options.rotary else h + params["positions"]
        if known is not None and options.context == "add":
            h = h + known
        if known is not None and options.num_prefix:
            h = jnp.concatenate([known, h], -2)
        mask = None
        if causal:
            place = jnp.arange(h.shape[-2])
            mask = place[:, None] >= place
            if options.num_prefix:
                mask = mask | (place < options.num_prefix)
        turns, crossed = self.turns, known if options.crosses else None

        # the backward pass keeps the products and computes the rest anew, as in ``apply_layers``
        @partial(jax.checkpoint, policy=None if options.checkpointing else SAVED)
        def step(h: Array, layer: Params) -> tuple[Array, None]:
            return self.block(layer, h, mask, turns, crossed), None

        layers = params[self.blocks]
        h = step(h, layers)[0] if options.num_blocks == 1 else jax.lax.scan(step, h, layers)[0]
        h = h[..., options.num_prefix :, :] if options.num_prefix else h
        h = _normalize(params["norm"], h) if self.final_norm else h
        return _linear(params["read"], h)


def _is_layer(shapes: Any) -> bool:
    """Whether these are a linear layer or a normalisation, not rows or several layers."""
    return isinstance(shapes, Mapping) and not {"kernel", "scale"}.isdisjoint(shapes)


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
        context_dim: width of the context, 0 for none.
        num_parameters: of a coupling, whose order of parameters the output then has.
        initial_scale: factor of the last layer's first weights; with 0 most maps start as the identity.
        rotary: turn queries and keys by their places (Su et al., 2021, RoFormer, arXiv:2104.09864) in place
            of learned embeddings.
        qk_norm: divide queries and keys by their root mean squares, times learned scales (Henry et al.,
            2020, arXiv:2010.04245), so that scores stay bounded.
        gated: MLPs W (act(A v + a) * (B v + b)) + c; with ``activation="silu"`` SwiGLU (Shazeer, 2020,
            arXiv:2002.05202).
        context: how a context enters: ``"add"``, embedded and added to every token; ``"prefix"``, as tokens
            before the others; ``"cross"``, by an attention to it of its own in every block.
        context_tokens: how many tokens of equal width a context of the latter two kinds holds, one after
            the other.
        checkpointing: keep no values inside the blocks for the backward pass, which computes them anew: less
            memory, a third more time.

    Raises:
        ValueError: for an unknown name, a number below 1, and widths that are no multiples.

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
    rotary: bool = False
    qk_norm: bool = False
    gated: bool = False
    context: str = "add"
    context_tokens: int = 1
    checkpointing: bool = False

    def __post_init__(self) -> None:
        tokens, parameters = self.num_tokens, self.num_parameters
        checks.positive_int("Transformer", num_tokens=tokens, num_parameters=parameters)
        checks.divisible("Transformer", tokens, in_dim=self.in_dim)
        checks.divisible("Transformer", tokens * parameters, out_dim=self.out_dim)
        bridge.Blocks.of(self).check("Transformer", ACTIVATIONS, self.num_tokens)
        super().__post_init__()

    @property
    def tokens(self) -> TokenNetwork:
        """The network of tokens."""
        return TokenNetwork(
            self.in_dim // self.num_tokens,
            self.out_dim // self.num_tokens,
            self.num_tokens,
            bridge.Blocks.of(self),
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
        rotary, qk_norm, gated, context, context_tokens, checkpointing: likewise.

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
    rotary: bool = False
    qk_norm: bool = False
    gated: bool = False
    context: str = "add"
    context_tokens: int = 1
    checkpointing: bool = False

    def __post_init__(self) -> None:
        checks.positive_int("ImageTransformer", num_tokens=self.num_tokens)
        bridge.Blocks.of(self).check("ImageTransformer", ACTIVATIONS, self.num_tokens)
        super().__post_init__()

    @property
    def tokens(self) -> TokenNetwork:
        """The network of tokens."""
        return TokenNetwork(
            self.in_dim,
            self.out_dim,
            self.num_tokens,
            bridge.Blocks.of(self),
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
    shapes = network.shapes(dtype)
    fresh: Params = {}
    if module.is_initializing():
        fresh = network.init(module.make_rng("params"), dtype)

    def start(_: Array, name: str) -> Any:
        # with weights at hand Flax asks only for the shapes
        if fresh:
            return fresh[name]
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), shapes[name])

    return {name: module.param(name, start, name) for name in shapes}


@dataclass(frozen=True)
class CausalTransformer(TokenNetwork):
    """A transformer of tokens ``(*batch, num_tokens, in_dim)`` whose outputs see the tokens before theirs.

    Output t, of shape ``(*batch, num_tokens, out_dim)``, is read at the place of token t - 1, the first
    one at that of a learned beginning.
    """

    final_norm: ClassVar[bool] = False
    owner: ClassVar[str] = "TransformerAutoregressive"

    def shapes(self, dtype: Any) -> dict[str, Any]:
        beginning = jax.ShapeDtypeStruct((self.options.hidden_dim,), dtype)
        return {"beginning": beginning, **super().shapes(dtype)}

    def __call__(self, params: Params, tokens: Array, context: Array | None) -> Array:
        """Args: all tokens, and a context of their batch shape."""
        h = _linear(params["embed"], tokens[..., :-1, :])
        shape = *h.shape[:-2], 1, self.options.hidden_dim
        h = jnp.concatenate([jnp.broadcast_to(params["beginning"], shape), h], -2)
        return self.run(params, h, context, True)

    def begin(self, params: Params, like: Array, context: Array | None) -> Steps:
        """What the steps for rows of ``like`` start from, its caches with room for all tokens."""
        options, known = self.options, self.context_of(params, context)
        shape = options.num_heads, options.num_prefix + self.num_tokens, options.head_dim
        caches = jnp.zeros((options.num_blocks, 2, like.shape[0], *shape), like.dtype)
        memories = None
        if options.crosses:
            memory = self.block.memory
            if options.num_blocks > 1:
                memory = jax.vmap(memory, (0, None))
            memories = memory(params[self.blocks], known)
        state = Steps(known if options.context == "add" else None, caches, memories)
        if known is not None and options.num_prefix:
            return self._through(params, 0, known, state)[1]
        return state

    def step(self, params: Params, t: Array, tokens: Array, state: Steps) -> tuple[Array, Steps]:
        """Outputs t, t + 1, ..., of shape ``(batch, n, out_dim)``, and the state with their tokens.

        Args:
            params: the weights.
            t: how many tokens are known.
            tokens: the last of them and n - 1 further ones, ``(batch, n, in_dim)``, the first one anything
                if none is known.
            state: of the steps before.
        """
        count = tokens.shape[-2]
        first = (t + jnp.arange(count) == 0)[:, None]
        h = jnp.where(first, params["beginning"], _linear(params["embed"], tokens))
        if not self.options.rotary:
            h = h + jax.lax.dynamic_slice_in_dim(params["positions"], t, count)
        h = h if state.term is None else h + state.term
        h, state = self._through(params, self.options.num_prefix + t, h, state, True)
        return _linear(params["read"], h), state

    def _through(
        self, params: Params, place: Array | int, h: Array, state: Steps, causal: bool = False
    ) -> tuple[Array, Steps]:
        """Tokens from a place on through all blocks."""
        turns, count = self.turns, h.shape[-2]
        if turns is not None:
            turns = jax.lax.dynamic_slice_in_dim(turns, place, count, 1)
        last = place + (jnp.arange(count)[:, None] if causal else count - 1)
        mask = jnp.arange(state.caches.shape[-2]) <= last

        def through(carry: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], None]:
            i, layer, memory = block
            return self.block.step(layer, *carry, i, place, mask, turns, memory), None

        layers, carry = params[self.blocks], (h, state.caches)
        if self.options.num_blocks == 1:
            first = jnp.zeros((), int), layers, state.memories
            (h, caches), _ = through(carry, first)
        else:
            blocks = jnp.arange(self.options.num_blocks), layers, state.memories
            (h, caches), _ = jax.lax.scan(through, carry, blocks)
        return h, Steps(state.term, caches, state.memories)

"""Transformers: networks of tokens that attend to each other."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from flow_bridge import attention as bridge
from flow_bridge import checks
from torch_flows.networks.activations import ACTIVATIONS, in_place
from torch_flows.networks.mlp import EPS, LayerNorm, scale_weights
from torch_flows.numerics import at_least_float32, recomputed, takes_kernels
from torch_flows.registry import register_network

Cache = list[Tensor]
"""Keys and values of a block for the tokens so far, ``(batch, heads, tokens, width)``."""
Memory = tuple[Tensor, ...] | None
"""Keys and values of a context, ``(*batch, heads, tokens, width)``."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(width)) v, of each head.

    Args:
        q: shape ``(*batch, heads, tokens, width)``.
        k, v: the same, of any number of tokens.
        mask: which of these each q sees, at least one; all if not given.
        causal: in place of a mask, each q sees the tokens up to its own: kernels leave out the others.
    """
    if not takes_kernels(q, k, v):
        return _attend(q, k, v, mask, causal)
    if torch.is_grad_enabled():
        return _Attention.apply(q, k, v, mask, causal)
    return _kernel(q, k, v, mask, causal)


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    return scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def _before(num_tokens: int, device: torch.device) -> Tensor:
    """Which tokens are up to each token."""
    place = torch.arange(num_tokens, device=device)
    return place[:, None] >= place


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    mask = _before(q.shape[-2], q.device) if causal else mask
    if mask is not None:
        scores = scores.masked_fill_(~mask, -math.inf)
    return scores.softmax(-1) @ v


class _Attention(torch.autograd.Function):
    """The kernel and its first derivatives; further ones are those of the plain form."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.causal = causal
        needed = ctx.needs_input_grad
        q, k, v = (
            x.detach().requires_grad_(need) for x, need in zip((q, k, v), needed, strict=False)
        )
        with torch.enable_grad():  # a graph of its own, as each device keeps other things for it
            found = _kernel(q, k, v, mask, causal)
        ctx.kernel = q, k, v, found
        return found.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or not takes_kernels(gradient):
            return recomputed(ctx, _attend, (*ctx.saved_tensors, ctx.causal), gradient)
        kernel, ctx.kernel = ctx.kernel, None  # autograd frees what is saved, and this would stay
        if kernel is None:  # another pass through a graph that was retained
            return recomputed(ctx, _kernel, (*ctx.saved_tensors, ctx.causal), gradient)
        *inputs, found = kernel
        wanted = [x for x in inputs if x.requires_grad]
        rest = iter(torch.autograd.grad(found, wanted, gradient))
        return tuple(next(rest) if need else None for need in ctx.needs_input_grad)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each pair of entries, one of either half of a head, by the angle of its place.

    Args:
        x: shape ``(*batch, heads, tokens, width)``.
        turns: the cosines and sines, ``(2, tokens, width / 2)``.
    """
    wide = at_least_float32(x)
    cos, sin = turns.to(wide).unbind(0)
    a, b = wide.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class RootNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) of the last axis, times a learned scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        mean = wide.square().mean(-1, keepdim=True)
        return (wide * (mean + EPS).rsqrt()).to(x.dtype) * self.weight


class AttentionBlock(nn.Module):
    """h + attention(norm(h)), and then h + MLP(norm(h)), of tokens ``(*batch, tokens, hidden_dim)``.

    Where the context is crossed, h + attention(norm(h), context) stands between them.
    """

    def __init__(self, options: bridge.Blocks) -> None:
        super().__init__()
        self.options = options
        dim, wide = options.hidden_dim, bridge.EXPANSION * options.hidden_dim
        self.attention_norm = LayerNorm(dim, EPS)
        # no bias: that of the keys would move no result
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.projection = nn.Linear(dim, dim)
        self.mlp_norm = LayerNorm(dim, EPS)
        self.expand = nn.Linear(dim, 2 * wide if options.gated else wide)
        self.contract = nn.Linear(wide, dim)
        if options.qk_norm:
            self.q_norm, self.k_norm = RootNorm(options.head_dim), RootNorm(options.head_dim)
        if options.crosses:
            self.cross_norm = LayerNorm(dim, EPS)
            self.cross_q = nn.Linear(dim, dim, bias=False)
            self.cross_kv = nn.Linear(dim, 2 * dim, bias=False)
            self.cross_projection = nn.Linear(dim, dim)

    def forward(
        self,
        h: Tensor,
        mask: Tensor | None,
        turns: Tensor | None,
        context: Tensor | None,
        causal: bool = False,
    ) -> Tensor:
        q, k, v = self.heads(h, turns)
        return self.finish(h, attend(q, k, v, mask, causal), self.memory(context))

    def step(
        self,
        h: Tensor,
        cache: Cache,
        t: int,
        mask: Tensor | None,
        turns: Tensor | None,
        memory: Memory,
    ) -> Tensor:
        """What tokens from t on become; their keys and values enter the cache.

        A cache with room for all tokens is filled in place, a shorter one grows.
        """
        q, *new = self.heads(h, turns)
        end = t + h.shape[-2]
        if cache and cache[0].shape[-2] >= end:
            for known, own in zip(cache, new, strict=True):
                known[..., t:end, :] = own
            k, v = (known[..., :end, :] for known in cache)
        else:
            pairs = zip(cache, new, strict=True) if cache else ((own,) for own in new)
            cache[:] = k, v = [torch.cat(pair, -2) for pair in pairs]
        return self.finish(h, attend(q, k, v, mask), memory)

    def step_at(
        self, h: Tensor, cache: Tensor, at: Tensor, turns: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """``step`` of tokens at places that are an array, and a cache of all places, which is copied."""
        q, *new = self.heads(h, turns)
        place = torch.arange(cache.shape[-2], device=h.device)
        if len(at) == 1:
            cache = torch.where((place == at).unsqueeze(-1), torch.stack(new), cache)
        else:
            cache = cache.index_copy(-2, at, torch.stack(new))
        known = place <= at.unsqueeze(-1)
        return self.finish(h, attend(q, cache[0], cache[1], known), memory), cache

    def heads(self, h: Tensor, turns: Tensor | None) -> tuple[Tensor, ...]:
        """Queries, keys and values, ``(*batch, heads, tokens, width)``."""
        q, k, v = self._split(self.qkv(self.attention_norm(h)), 3)
        if self.options.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        return q, k, v

    def memory(self, context: Tensor | None) -> Memory:
        """Keys and values of a context that is crossed."""
        return None if context is None else self._split(self.cross_kv(context), 2)

    def finish(self, h: Tensor, found: Tensor, memory: Memory) -> Tensor:
        """The rest of the block, given what the heads found."""
        h = h + self.projection(found.transpose(-3, -2).flatten(-2))
        if memory is not None:
            (q,) = self._split(self.cross_q(self.cross_norm(h)), 1)
            k, v = memory
            found = attend(q, k, v)
            h = h + self.cross_projection(found.transpose(-3, -2).flatten(-2))
        wide = self.expand(self.mlp_norm(h))
        if self.options.gated:
            gate, wide = wide.chunk(2, -1)
            wide = ACTIVATIONS[self.options.activation](gate) * wide
        else:
            wide = in_place(self.options.activation)(wide)
        return h + self.contract(wide)

    def _split(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """Heads of several parts side by side."""
        parts = x.unflatten(-1, (count, self.options.num_heads, -1)).unbind(-3)
        return tuple([part.transpose(-3, -2) for part in parts])


class Steps(NamedTuple):
    """What the steps of an inverse keep.

    Attributes:
        term: what the context adds to every token.
        caches: of each block.
        memories: of each block, where the context is crossed.
    """

    term: Tensor | None
    caches: list[Cache]
    memories: list[Memory]


class TokenNetwork(nn.Module):
    """What transformers share: tokens and positions are embedded, pass through blocks, and are read out.

    Attributes:
        final_norm: whether a layer normalisation precedes the reading.
        owner: who refuses arguments, if not the network itself.
    """

    final_norm = True
    owner = ""
    blocks: Sequence[AttentionBlock]

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int, options: bridge.Blocks) -> None:
        super().__init__()
        options.check(self.owner or type(self).__name__, ACTIVATIONS, num_tokens)
        self.options = options
        self.num_tokens = num_tokens
        for name, value in vars(options).items():
            setattr(self, name, value)
        dim, context_tokens = options.hidden_dim, options.context_tokens
        self.embed = nn.Linear(in_dim, dim)
        if options.rotary:
            # no buffer: these would follow the weights into dtypes of fewer digits
            self.turns = torch.as_tensor(options.turns(num_tokens), device="cpu")
        else:
            self.positions = _positions(num_tokens, dim)
        if options.context_dim:
            self.embed_context = nn.Linear(options.context_dim // context_tokens, dim)
            if context_tokens > 1:
                self.context_positions = _positions(context_tokens, dim)
        blocks = [AttentionBlock(options) for _ in range(options.num_blocks)]
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        if self.final_norm:
            self.norm = LayerNorm(dim, EPS)
        self.read = nn.Linear(dim, out_dim)
        scale_weights(self.read, options.initial_scale)

    def context_of(self, context: Tensor | None) -> Tensor | None:
        """The context as embedded tokens, ``(*batch, context_tokens, hidden_dim)``."""
        if context is None:
            return None
        h = self.embed_context(context.unflatten(-1, (self.options.context_tokens, -1)))
        return h + self.context_positions if self.options.context_tokens > 1 else h

    def run(self, h: Tensor, context: Tensor | None, causal: bool = False) -> Tensor:
        """From embedded tokens ``(*batch, tokens, hidden_dim)`` to what is read out of them.

        Args:
            h: the tokens.
            context: of their batch shape.
            causal: whether each sees but those before it, itself and the context.
        """
        options, known = self.options, self.context_of(context)
        h = h if options.rotary else h + self.positions
        if known is not None and options.context == "add":
            h = h + known
        if known is not None and options.num_prefix:
            h = torch.cat([known, h], -2)
        mask = None
        if causal and options.num_prefix:
            place = torch.arange(h.shape[-2], device=h.device)
            mask, causal = _before(len(place), h.device) | (place < options.num_prefix), False
        turns = self.turns.to(h.device) if options.rotary else None
        crossed = known if options.crosses else None
        again = options.checkpointing and torch.is_grad_enabled()
        # whose hooks ``torch.func`` refuses
        again = again and not torch._C._are_functorch_transforms_active()
        for block in self.blocks:
            if again:
                given = (h, mask, turns, crossed, causal)
                h = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                h = block(h, mask, turns, crossed, causal)
        h = h[..., options.num_prefix :, :] if options.num_prefix else h
        return self.read(self.norm(h) if self.final_norm else h)


def _positions(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(bridge.POSITION_SCALE * torch.randn(count, dim))


@register_network
class Transformer(TokenNetwork):
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
        >>> import torch, torch_flows
        >>> net = torch_flows.Transformer(in_dim=12, out_dim=8, num_tokens=4, hidden_dim=16)
        >>> tuple(net(torch.zeros(5, 12)).shape)
        (5, 8)
    """

    event_ndim = 1

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int,
        hidden_dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        activation: str = "gelu",
        context_dim: int = 0,
        num_parameters: int = 1,
        initial_scale: float = 0.0,
        rotary: bool = False,
        qk_norm: bool = False,
        gated: bool = False,
        context: str = "add",
        context_tokens: int = 1,
        checkpointing: bool = False,
    ) -> None:
        checks.positive_int("Transformer", num_tokens=num_tokens, num_parameters=num_parameters)
        checks.divisible("Transformer", num_tokens, in_dim=in_dim)
        checks.divisible("Transformer", num_tokens * num_parameters, out_dim=out_dim)
        options = bridge.Blocks(
            hidden_dim,
            num_blocks,
            num_heads,
            activation,
            context_dim,
            initial_scale,
            rotary,
            qk_norm,
            gated,
            context,
            context_tokens,
            checkpointing,
        )
        super().__init__(in_dim // num_tokens, out_dim // num_tokens, num_tokens, options)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.num_parameters = num_parameters

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Args: x, and a context of its batch shape."""
        tokens = x.unflatten(-1, (self.num_tokens, -1))
        out = self.run(self.embed(tokens), context).unflatten(-1, (self.num_parameters, -1))
        return out.transpose(-3, -2).flatten(-3).to(x.dtype)


@register_network
class ImageTransformer(TokenNetwork):
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

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int,
        hidden_dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        activation: str = "gelu",
        context_dim: int = 0,
        initial_scale: float = 0.0,
        rotary: bool = False,
        qk_norm: bool = False,
        gated: bool = False,
        context: str = "add",
        context_tokens: int = 1,
        checkpointing: bool = False,
    ) -> None:
        checks.positive_int("ImageTransformer", num_tokens=num_tokens)
        options = bridge.Blocks(
            hidden_dim,
            num_blocks,
            num_heads,
            activation,
            context_dim,
            initial_scale,
            rotary,
            qk_norm,
            gated,
            context,
            context_tokens,
            checkpointing,
        )
        super().__init__(in_dim, out_dim, num_tokens, options)
        self.in_dim, self.out_dim = in_dim, out_dim

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Args: x, and a context of its batch shape."""
        bridge.check_pixels(self.num_tokens, x.shape[-2:])
        tokens = x.flatten(-2).transpose(-2, -1)
        out = self.run(self.embed(tokens), context)
        return out.transpose(-2, -1).unflatten(-1, x.shape[-2:]).to(x.dtype)


class CausalTransformer(TokenNetwork):
    """A transformer of tokens ``(*batch, num_tokens, in_dim)`` whose outputs see the tokens before theirs.

    Output t, of shape ``(*batch, num_tokens, out_dim)``, is read at the place of token t - 1, the first
    one at that of a learned beginning.
    """

    final_norm = False
    owner = "TransformerAutoregressive"

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int, options: bridge.Blocks) -> None:
        super().__init__(in_dim, out_dim, num_tokens, options)
        self.beginning = nn.Parameter(bridge.POSITION_SCALE * torch.randn(options.hidden_dim))

    def forward(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Args: all tokens, and a context of their batch shape."""
        h = self.embed(tokens[..., :-1, :])
        h = torch.cat([self.beginning.to(h.dtype).expand(*h.shape[:-2], 1, -1), h], -2)
        return self.run(h, context, True)

    def begin(self, like: Tensor, context: Tensor | None, in_place: bool) -> Steps:
        """What the steps for rows of ``like`` start from, its caches with room for all tokens or none."""
        options, known = self.options, self.context_of(context)
        caches: list[Cache] = [[] for _ in self.blocks]
        if in_place:
            shape = options.num_heads, options.num_prefix + self.num_tokens, options.head_dim
            caches = [[*pair] for pair in like.new_empty(len(caches), 2, like.shape[0], *shape)]
        crossed = known if options.crosses else None
        memories = [block.memory(crossed) for block in self.blocks]
        state = Steps(known if options.context == "add" else None, caches, memories)
        if known is not None and options.num_prefix:
            self._through(0, known, state)
        return state

    def step(self, t: int, tokens: Tensor, state: Steps) -> Tensor:
        """Outputs t, t + 1, ..., of shape ``(batch, n, out_dim)``.

        Args:
            t: how many tokens are known.
            tokens: the last of them and n - 1 further ones, ``(batch, n, in_dim)``, the first one anything
                if none is known.
            state: of the steps before.
        """
        count = tokens.shape[-2]
        if t:
            h = self.embed(tokens)
        else:
            h = self.beginning.expand(tokens.shape[0], 1, -1)
            h = torch.cat([h, self.embed(tokens[:, 1:])], 1) if count > 1 else h
        h = h if self.options.rotary else h + self.positions[t : t + count]
        h = h if state.term is None else h + state.term
        return self.read(self._through(self.options.num_prefix + t, h, state, count > 1))

    def step_at(
        self, t: Tensor, tokens: Tensor, caches: Tensor, state: Steps
    ) -> tuple[Tensor, Tensor]:
        """``step`` where t are the places of all n outputs: these and new caches of all blocks and places."""
        at = self.options.num_prefix + t
        h = torch.where((t == 0).unsqueeze(-1), self.beginning, self.embed(tokens))
        h = h if self.options.rotary else h + self.positions.index_select(0, t)
        h = h if state.term is None else h + state.term
        turns = self.turns.to(h.device).index_select(1, at) if self.options.rotary else None
        new = []
        for i, block in enumerate(self.blocks):
            h, cache = block.step_at(h, caches[i], at, turns, state.memories[i])
            new.append(cache)
        return self.read(h), torch.stack(new)

    def _through(self, place: int, h: Tensor, state: Steps, causal: bool = False) -> Tensor:
        """Tokens from a place on through all blocks."""
        mask, turns, end = None, None, place + h.shape[-2]
        if causal:
            mask = _before(end, h.device)[place:]
        if self.options.rotary:
            turns = self.turns[:, place:end].to(h.device)
        for block, cache, memory in zip(self.blocks, state.caches, state.memories, strict=True):
            h = block.step(h, cache, place, mask, turns, memory)
        return h

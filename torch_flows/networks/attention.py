"""Transformers: networks of tokens that attend to each other."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import attention as bridge
from flow_bridge import checks
from torch_flows.networks.activations import ACTIVATIONS, in_place
from torch_flows.networks.mlp import EPS, LayerNorm, scale_weights
from torch_flows.registry import register_network

Cache = list[Tensor]
"""Keys and values of a block for the tokens so far, ``(batch, heads, tokens, width)``."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(width)) v, of each head.

    Args:
        q: shape ``(*batch, heads, tokens, width)``.
        k, v: the same, of any number of tokens.
        mask: which of these each q sees, at least one; all if not given.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf)
    return scores.softmax(-1) @ v


class AttentionBlock(nn.Module):
    """h + attention(norm(h)), and then h + MLP(norm(h)), of tokens ``(*batch, tokens, hidden_dim)``."""

    def __init__(self, hidden_dim: int, num_heads: int, activation: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.activation = activation
        self.attention_norm = LayerNorm(hidden_dim, EPS)
        # no bias: that of the keys would move no result
        self.qkv = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.projection = nn.Linear(hidden_dim, hidden_dim)
        self.mlp_norm = LayerNorm(hidden_dim, EPS)
        self.expand = nn.Linear(hidden_dim, bridge.EXPANSION * hidden_dim)
        self.contract = nn.Linear(bridge.EXPANSION * hidden_dim, hidden_dim)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.heads(h)
        return self.finish(h, attend(q, k, v, mask))

    def step(self, h: Tensor, cache: Cache, t: int) -> Tensor:
        """What token t becomes, ``(batch, 1, hidden_dim)``; its key and value enter the cache.

        A cache with room for all tokens is filled in place, a shorter one grows.
        """
        q, *new = self.heads(h)
        if cache and cache[0].shape[-2] > t:
            for known, own in zip(cache, new, strict=True):
                known[..., t : t + 1, :] = own
            k, v = (known[..., : t + 1, :] for known in cache)
        else:
            pairs = zip(cache, new, strict=True) if cache else ((own,) for own in new)
            cache[:] = k, v = [torch.cat(pair, -2) for pair in pairs]
        return self.finish(h, attend(q, k, v))

    def heads(self, h: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, ``(*batch, heads, tokens, width)``."""
        qkv = self.qkv(self.attention_norm(h)).unflatten(-1, (3, self.num_heads, -1))
        return tuple([part.transpose(-3, -2) for part in qkv.unbind(-3)])

    def finish(self, h: Tensor, found: Tensor) -> Tensor:
        """The rest of the block, given what the heads found."""
        h = h + self.projection(found.transpose(-3, -2).flatten(-2))
        wide = in_place(self.activation)(self.expand(self.mlp_norm(h)))
        return h + self.contract(wide)


class TokenNetwork(nn.Module):
    """What transformers share: tokens and positions are embedded, pass through blocks, and are read out.

    Attributes:
        final_norm: whether a layer normalisation precedes the reading.
        owner: who refuses arguments, if not the network itself.
    """

    final_norm = True
    owner = ""
    blocks: Sequence[AttentionBlock]

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int,
        hidden_dim: int,
        num_blocks: int,
        num_heads: int,
        activation: str,
        context_dim: int,
        initial_scale: float,
    ) -> None:
        super().__init__()
        owner = self.owner or type(self).__name__
        bridge.check_transformer(owner, hidden_dim, num_blocks, num_heads, context_dim)
        checks.one_of(owner, "activation", activation, ACTIVATIONS)
        checks.non_negative_number(owner, initial_scale=initial_scale)
        self.num_tokens = num_tokens
        self.hidden_dim, self.num_blocks, self.num_heads = hidden_dim, num_blocks, num_heads
        self.activation = activation
        self.context_dim = context_dim
        self.initial_scale = initial_scale
        self.embed = nn.Linear(in_dim, hidden_dim)
        places = bridge.POSITION_SCALE * torch.randn(num_tokens, hidden_dim)
        self.positions = nn.Parameter(places)
        if context_dim:
            self.embed_context = nn.Linear(context_dim, hidden_dim)
        blocks = [AttentionBlock(hidden_dim, num_heads, activation) for _ in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        if self.final_norm:
            self.norm = LayerNorm(hidden_dim, EPS)
        self.read = nn.Linear(hidden_dim, out_dim)
        scale_weights(self.read, initial_scale)

    def run(self, h: Tensor, context: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """From embedded tokens ``(*batch, tokens, hidden_dim)`` to what is read out of them."""
        h = h + self.positions
        if context is not None:
            h = h + self.embed_context(context).unsqueeze(-2)
        for block in self.blocks:
            h = block(h, mask)
        return self.read(self.norm(h) if self.final_norm else h)


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
        context_dim: width of the context, which is embedded and added to every token; 0 for none.
        num_parameters: of a coupling, whose order of parameters the output then has.
        initial_scale: factor of the last layer's first weights; with 0 most maps start as the identity.

    Raises:
        ValueError: for an unknown activation, a number below 1, and widths that are no multiples.

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
    ) -> None:
        checks.positive_int("Transformer", num_tokens=num_tokens, num_parameters=num_parameters)
        checks.divisible("Transformer", num_tokens, in_dim=in_dim)
        checks.divisible("Transformer", num_tokens * num_parameters, out_dim=out_dim)
        super().__init__(
            in_dim // num_tokens,
            out_dim // num_tokens,
            num_tokens,
            hidden_dim,
            num_blocks,
            num_heads,
            activation,
            context_dim,
            initial_scale,
        )
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
    ) -> None:
        checks.positive_int("ImageTransformer", num_tokens=num_tokens)
        stack = hidden_dim, num_blocks, num_heads, activation
        super().__init__(in_dim, out_dim, num_tokens, *stack, context_dim, initial_scale)

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

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int,
        hidden_dim: int,
        num_blocks: int,
        num_heads: int,
        activation: str,
        context_dim: int,
        initial_scale: float,
    ) -> None:
        stack = hidden_dim, num_blocks, num_heads, activation
        super().__init__(in_dim, out_dim, num_tokens, *stack, context_dim, initial_scale)
        self.beginning = nn.Parameter(bridge.POSITION_SCALE * torch.randn(hidden_dim))

    def forward(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Args: all tokens, and a context of their batch shape."""
        h = self.embed(tokens[..., :-1, :])
        h = torch.cat([self.beginning.to(h.dtype).expand(*h.shape[:-2], 1, -1), h], -2)
        place = torch.arange(self.num_tokens, device=h.device)
        return self.run(h, context, place[:, None] >= place)

    def caches(self, like: Tensor, in_place: bool) -> list[Cache]:
        """An empty cache of each block for rows of ``like``, with room for all tokens or none."""
        if not in_place:
            return [[] for _ in self.blocks]
        shape = self.num_heads, self.num_tokens, self.hidden_dim // self.num_heads
        room = like.new_empty(self.num_blocks, 2, like.shape[0], *shape)
        return [list(pair) for pair in room]

    def step(self, t: int, token: Tensor, term: Tensor | None, caches: Sequence[Cache]) -> Tensor:
        """Output t, ``(batch, out_dim)``.

        Args:
            t: how many tokens are known.
            token: the last of them, ``(batch, in_dim)``, anything at first.
            term: what the context adds.
            caches: of the steps before.
        """
        h = self.embed(token) if t else self.beginning.expand(token.shape[0], -1)
        h = h + self.positions[t]
        h = (h if term is None else h + term).unsqueeze(-2)
        for block, cache in zip(self.blocks, caches, strict=True):
            h = block.step(h, cache, t)
        return self.read(h).squeeze(-2)

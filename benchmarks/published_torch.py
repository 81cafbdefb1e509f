"""TarFlow and Jet as one writes them in a single file: the arithmetic of the papers, restated.

Zhai et al. (2024), arXiv:2412.06329; Kolesnikov et al. (2024), arXiv:2412.15129. Scales of TarFlow are exp(a)
and its first token is mapped by the identity; samples come one token after another, with the keys and
values of those before it kept (``cached``) or by a pass of all of them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

START = 0.1
"""Factor of the first weights of the last layers, which are no zeros, so that checks say something."""

Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Attention and an MLP, each after a normalisation and added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor, causal: bool, cache: Cache | None = None) -> Tensor:
        parts = self.qkv(self.norm(h)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = parts.transpose(1, 3).unbind(2)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0][0], k], 2), torch.cat([cache[0][1], v], 2)
            cache[:] = [(k, v)]
        found = scaled_dot_product_attention(q, k, v, is_causal=causal)
        h = h + self.project(found.transpose(1, 2).flatten(2))
        return h + self.mlp(h)


class Network(nn.Module):
    """Tokens ``(rows, tokens, in_dim)`` to outputs of as many tokens."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        width: int,
        depth: int,
        num_heads: int,
        causal: bool,
    ) -> None:
        super().__init__()
        num_tokens, in_dim, out_dim = sizes
        self.causal = causal
        self.embed, self.read = nn.Linear(in_dim, width), nn.Linear(width, out_dim)
        self.positions = nn.Parameter(1e-2 * torch.randn(num_tokens, width))
        self.blocks = nn.ModuleList([Block(width, num_heads) for _ in range(depth)])
        self.norm = nn.Identity() if causal else nn.LayerNorm(width)
        with torch.no_grad():
            self.read.weight.mul_(START)
            self.read.bias.mul_(START)

    def forward(self, x: Tensor, caches: list[Cache] | None = None) -> Tensor:
        done = caches[0][0][0].shape[2] if caches and caches[0] else 0
        h = self.embed(x) + self.positions[done : done + x.shape[1]]
        for i, block in enumerate(self.blocks):
            cache = None if caches is None else caches[i]
            h = block(h, self.causal and cache is None, cache)
        return self.read(self.norm(h))


class AutoregressiveLayer(nn.Module):
    """z_t = (x_t - b) exp(-a), (a, b) read at token t - 1."""

    def __init__(self, sizes: tuple[int, int], flip: bool, *options: int) -> None:
        super().__init__()
        self.flip = flip
        self.network = Network((*sizes, 2 * sizes[1]), *options, True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flip(1) if self.flip else x
        out = self.network(x)
        out = torch.cat([torch.zeros_like(out[:, :1]), out[:, :-1]], 1)
        shift, log_scale = out.chunk(2, -1)
        z = (x - shift) * (-log_scale).exp()
        return z.flip(1) if self.flip else z, -log_scale.sum((1, 2))

    def inverse(self, z: Tensor, cached: bool) -> Tensor:
        z = z.flip(1) if self.flip else z
        x = z[:, :1]
        caches: list[Cache] = [[] for _ in self.network.blocks]
        for t in range(1, z.shape[1]):
            out = self.network(x[:, -1:], caches) if cached else self.network(x)[:, -1:]
            shift, log_scale = out.chunk(2, -1)
            x = torch.cat([x, z[:, t : t + 1] * log_scale.exp() + shift], 1)
        return x.flip(1) if self.flip else x


class CouplingLayer(nn.Module):
    """The free half becomes (x + b) 2 sigmoid(s): half of the channels of every token, or half of the tokens.

    These are an even number.
    """

    order: Tensor

    def __init__(self, sizes: tuple[int, int], i: int, *options: int) -> None:
        super().__init__()
        num_tokens, channels = sizes
        self.axis = 1 if i % 5 == 4 else 2
        if self.axis == 1:
            side = math.isqrt(num_tokens)
            board = (torch.arange(num_tokens) // side + torch.arange(num_tokens) % side) % 2
            order = board.argsort(stable=True, descending=i // 5 % 2 == 1)
        else:
            order = torch.randperm(channels, generator=torch.Generator().manual_seed(i // 2 % 2))
            order = order.flip(0) if i % 2 else order
        self.register_buffer("order", order, persistent=False)
        self.fixed = len(order) // 2
        shape = (num_tokens // 2, channels, 2 * channels)
        if self.axis == 2:
            shape = (num_tokens, self.fixed, 2 * (channels - self.fixed))
        self.network = Network(shape, *options, False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fixed, free = x.index_select(self.axis, self.order).tensor_split([self.fixed], self.axis)
        shift, raw = self.network(fixed).chunk(2, -1)
        return fixed, free, shift, raw

    def joined(self, fixed: Tensor, free: Tensor) -> Tensor:
        return torch.cat([fixed, free], self.axis).index_select(self.axis, self.order.argsort())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fixed, free, shift, raw = self.split(x)
        log_scale = logsigmoid(raw) + math.log(2)
        return self.joined(fixed, (free + shift) * log_scale.exp()), log_scale.sum((1, 2))

    def inverse(self, z: Tensor, cached: bool) -> Tensor:
        fixed, free, shift, raw = self.split(z)
        return self.joined(fixed, free / (2 * raw.sigmoid()) - shift)


class Flow(nn.Module):
    """Layers of the patches of images, and a standard normal."""

    def __init__(
        self, layer: type[nn.Module], shape: tuple[int, ...], patch: int, layers: int, *options: int
    ) -> None:
        super().__init__()
        self.shape, self.patch, self.cached = shape, patch, True
        self.grid = shape[1] // patch, shape[2] // patch
        sizes = math.prod(self.grid), shape[0] * patch**2
        kinds = (
            [i % 2 == 1 for i in range(layers)] if layer is AutoregressiveLayer else range(layers)
        )
        self.layers = nn.ModuleList([layer(sizes, kind, *options) for kind in kinds])

    def tokens(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.shape[0], self.grid[0], self.patch, self.grid[1], self.patch)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def image(self, tokens: Tensor) -> Tensor:
        x = tokens.reshape(-1, *self.grid, self.shape[0], self.patch, self.patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, *self.shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.tokens(x), x.new_zeros(len(x))
        for layer in self.layers:
            z, own = layer(z)
            log_det = log_det + own
        return self.image(z), log_det

    def inverse(self, z: Tensor) -> Tensor:
        x = self.tokens(z)
        for layer in reversed(self.layers):
            x = layer.inverse(x, self.cached)
        return self.image(x)

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self(x)
        constant = math.prod(self.shape) * math.log(2 * math.pi) / 2
        return log_det - z.square().sum((1, 2, 3)) / 2 - constant

    def sample(self, num_samples: int) -> Tensor:
        return self.inverse(
            torch.randn(num_samples, *self.shape, device=next(self.parameters()).device)
        )

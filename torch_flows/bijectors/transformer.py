"""Autoregressive maps of tokens, whose parameters come from a transformer."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.func import functional_call

from flow_bridge import attention as bridge
from flow_bridge import checks
from flow_bridge.errors import ConvergenceError
from flow_bridge.masks import Order, autoregressive_order
from torch_flows.bijectors.base import Bijector, Output, tracked
from torch_flows.inputs import check_input
from torch_flows.networks.attention import CausalTransformer, Steps
from torch_flows.numerics import full_precision, is_eager, loops
from torch_flows.registry import register
from torch_flows.univariate.base import UnivariateMap


class Sweeps(NamedTuple):
    """What an inverse by sweeps found.

    Attributes:
        x: shape ``(*batch, dim)``.
        log_det: log|det dx/dz|, of shape ``(*batch,)``.
        num_sweeps: how many sweeps there were, of all blocks together.
        change: by how much the last of them moved each row, the largest |dx| / (1 + |x|), ``(*batch,)``: if
            that is rounding x is found. It is 0 after as many sweeps as there are tokens, and of several
            blocks the largest.
    """

    x: Tensor
    log_det: Tensor
    num_sweeps: Tensor
    change: Tensor


@register
class TransformerAutoregressive(Bijector):
    """z_t = map(x_t; parameters_t(x_<t)) for tokens x_t, with the parameters from a causal transformer.

    A vector holds one token of ``token_dim`` entries after the other. Every entry of a token is mapped
    given all tokens before it, by parameters that the transformer reads out one place earlier; the first
    ones see a learned beginning, and the context. log|det| is the sum of the logs of the map's slopes.

    ``forward`` is one pass. ``inverse`` finds one token after another and keeps the keys and values of
    the known ones, so that all of its steps together cost about one pass. Its gradients keep what each
    step saw of them: memory that grows with the square of the number of tokens.

    Args:
        dim: number of entries.
        map: what happens to an entry, given its parameters.
        token_dim: entries of a token.
        hidden_dim: width of the tokens in the transformer, a multiple of ``num_heads``.
        num_blocks: blocks of attention and MLP.
        num_heads: heads of the attention.
        order: which token is generated when: ``None`` (0, 1, 2, ...), ``"reverse"``, ``"random:SEED"``, or
            a list of the tokens.
        context_dim: width of the context, 0 for none.
        activation: of the MLPs, a name in ``networks.activations.ACTIVATIONS``.
        initial_scale: factor of the first weights of the last layer; with 0 most maps start as the identity.
        max_sweeps: ``None``, or the number of Jacobi sweeps x <- map^-1(z; parameters(x)) that an inverse
            may take in place of its steps. Each is one pass for all tokens at once; as many sweeps as there
            are tokens are always enough, and far fewer often are. Gradients are those of the steps.
        rotary, qk_norm, gated, context, context_tokens, checkpointing: as in ``networks.Transformer``.
        guidance: ``None``, or a weight w: the context then is two of half its width, c and one without
            information u, and parameters are p_c + w (p_c - p_u); two weights are that of the first token and
            that of the last, the others lie in between. See ``guided``.
        sweep_size: ``None``, or how many tokens are found together by sweeps (Gauss-Seidel-Jacobi): blocks of
            so many, one after another, of which each takes up to ``max_sweeps`` sweeps of its tokens alone,
            with keys and values kept of those before them.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for an order that is not one, widths that are no multiples, and a ``MixedMap``.
        ConvergenceError: if ``max_sweeps`` were too few, outside compiled code; there the row is NaN.

    Reference: Zhai et al. (2024), TarFlow, arXiv:2412.06329; Gu et al. (2025), STARFlow,
    arXiv:2506.06276; sweeps: Song et al. (2021), arXiv:2002.03629, in blocks: Liu and Qin (2025),
    arXiv:2505.12849.

    Examples:
        >>> import torch, torch_flows
        >>> map = torch_flows.SplineMap(num_bins=4)
        >>> bijector = torch_flows.TransformerAutoregressive(6, map, token_dim=2, hidden_dim=8)
        >>> z, log_det = bijector.forward(torch.zeros(5, 6))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 6), (5,))
    """

    generated: Tensor
    position: Tensor

    def __init__(
        self,
        dim: int,
        map: UnivariateMap,
        token_dim: int = 1,
        hidden_dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        order: Order = None,
        context_dim: int = 0,
        activation: str = "gelu",
        initial_scale: float = 0.0,
        max_sweeps: int | None = None,
        rotary: bool = False,
        qk_norm: bool = False,
        gated: bool = False,
        context: str = "add",
        context_tokens: int = 1,
        checkpointing: bool = False,
        guidance: bridge.Guidance = None,
        sweep_size: int | None = None,
    ) -> None:
        super().__init__()
        owner = "TransformerAutoregressive"
        checks.instances(owner, "map", [map], UnivariateMap)
        checks.one_map(owner, map)
        bridge.check_sweeps(owner, max_sweeps, sweep_size)
        self.dim = dim
        self.map = map
        self.token_dim = token_dim
        self.hidden_dim, self.num_blocks, self.num_heads = hidden_dim, num_blocks, num_heads
        self.order = tuple(order) if isinstance(order, list) else order
        self.context_dim = context_dim
        self.activation = activation
        self.initial_scale = initial_scale
        self.max_sweeps = max_sweeps
        self.rotary, self.qk_norm, self.gated = rotary, qk_norm, gated
        self.context, self.context_tokens = context, context_tokens
        self.checkpointing = checkpointing
        self.guidance = tuple(guidance) if isinstance(guidance, list) else guidance
        self.sweep_size = sweep_size
        self.event_shape = (dim,)
        self.domain, self.codomain = map.domain, map.codomain
        self.num_tokens = bridge.num_tokens(owner, dim, token_dim)
        generated = torch.as_tensor(autoregressive_order(self.order, self.num_tokens))
        self.weights = bridge.guidance_weights(owner, guidance, self.num_tokens, context_dim)
        options = bridge.Blocks.of(self)
        if self.weights is not None:
            options = replace(options, context_dim=context_dim // 2)
        self.network = CausalTransformer(
            token_dim * map.num_features, token_dim * map.num_parameters, self.num_tokens, options
        )
        self.register_buffer("generated", generated, persistent=False)
        self.register_buffer("position", generated.argsort(), persistent=False)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        tokens = self._tokens(x)
        z, log_slope = self.map.forward(tokens, self._parameters_of(tokens, context))
        return self._vector(z), log_slope.sum((-2, -1))

    @full_precision
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        if torch.is_grad_enabled():
            if not is_eager():
                return self.explicit_inverse(z, context)
            names, weights = zip(*self.named_parameters(), strict=True)
            return _Recomputed.apply(self, names, z, context, *weights)
        if self.max_sweeps is None:
            return self.explicit_inverse(z, context)
        size = bridge.sweep_size(self.sweep_size, self.num_tokens)
        x, log_det, _, change = self.solve_by_sweeps(z, context, self.max_sweeps, size)
        failed = ~x.isfinite().all(-1)
        if self.max_sweeps < size:
            failed = failed | _moving(change, True)
            found = failed & z.isfinite().all(-1)
            if is_eager() and found.any():
                raise ConvergenceError(bridge.sweeps_message(int(found.sum()), self.max_sweeps))
        x = torch.where(failed.unsqueeze(-1), math.nan, x)
        return x, torch.where(failed, math.nan, log_det)

    def inverse_by_sweeps(
        self,
        z: Tensor,
        max_sweeps: int,
        context: Tensor | None = None,
        sweep_size: int | None = None,
    ) -> Sweeps:
        """``inverse`` by sweeps, however far they come, without gradients.

        Args:
            z: shape ``(*batch, dim)``.
            max_sweeps: after how many to stop in each block, if they still move something by more than
                rounding and there are more tokens.
            context: as for ``inverse``.
            sweep_size: tokens of a block, all if not given.
        """
        context = check_input(self, "z", z, context)
        bridge.check_sweeps("TransformerAutoregressive", max_sweeps, sweep_size)
        size = bridge.sweep_size(sweep_size, self.num_tokens)
        with torch.no_grad():
            return self.solve_by_sweeps(z, context, max_sweeps, size)

    @full_precision
    def solve_by_sweeps(
        self, z: Tensor, context: Tensor | None, max_sweeps: int, sweep_size: int
    ) -> Sweeps:
        """``inverse_by_sweeps`` of what has been checked."""
        tokens, seen, context = self._rows(z, context)
        solve = self._block_loop if loops() else self._blocks
        x, log_slopes, count, change = solve(tokens, seen, context, max_sweeps, sweep_size)
        batch = z.shape[:-1]
        x = self._vector(x.reshape(*batch, self.num_tokens, self.token_dim))
        return Sweeps(x, log_slopes.sum((-2, -1)).reshape(batch), count, change.reshape(batch))

    def _blocks(
        self,
        tokens: Tensor,
        seen: Tensor,
        context: Tensor | None,
        max_sweeps: int,
        sweep_size: int,
    ) -> tuple[Tensor, ...]:
        """x and the log-slopes ``(batch, num_tokens, token_dim)``, how many sweeps, and by how much the last
        ones moved each row."""
        given = tokens.isfinite().all(-1).all(-1)
        state = self.network.begin(seen, context, is_eager())
        change, last, count = torch.zeros_like(tokens[:, 0, 0]), tokens[:, :1], 0
        found, log_slopes = [], []
        for t in range(0, self.num_tokens, sweep_size):
            own = x = tokens[:, t : t + sweep_size]
            weights = self._weights(t, own.shape[1])
            for tries in range(min(max_sweeps, own.shape[1])):
                sweep = Steps(state.term, [[*cache] for cache in state.caches], state.memories)
                seen = self._seen(_finite(torch.cat([last, x[:, :-1]], 1)))
                before, count = x, count + 1
                x, log_slope = self._solve(own, self.network.step(t, seen, sweep), weights)
                moved = _change(before, x, (-2, -1))
                if tries + 1 == own.shape[1]:
                    moved = torch.zeros_like(moved)
                if is_eager() and not _moving(moved, given).any():
                    break
            state, last, change = sweep, x[:, -1:], change.maximum(moved)
            found.append(x)
            log_slopes.append(log_slope)
        total = torch.tensor(count, device=tokens.device)
        return torch.cat(found, 1), torch.cat(log_slopes, 1), total, change

    def _block_loop(
        self,
        tokens: Tensor,
        seen: Tensor,
        context: Tensor | None,
        max_sweeps: int,
        sweep_size: int,
    ) -> tuple[Tensor, ...]:
        """``_blocks`` as one loop of the compiled program: the last block begins earlier, if it were
        shorter than the others, with tokens that are known."""
        given = tokens.isfinite().all(-1).all(-1)
        state, caches = self._carried(seen, context)
        all_weights = self._weights(0, self.num_tokens)
        offsets = torch.arange(sweep_size, device=tokens.device)

        def going(start: Tensor, *_: Tensor) -> Tensor:
            return (start < self.num_tokens).squeeze(0)

        def sweep(
            start: Tensor,
            tries: Tensor,
            count: Tensor,
            x: Tensor,
            log_slopes: Tensor,
            change: Tensor,
            caches: Tensor,
        ) -> tuple[Tensor, ...]:
            places = start.clamp(max=self.num_tokens - sweep_size) + offsets
            known = x.index_select(1, (places - 1).clamp(min=0))
            out, caches = self.network.step_at(places, self._seen(_finite(known)), caches, state)
            weights = None if all_weights is None else all_weights.index_select(0, places)
            own, log_slope = self._solve(tokens.index_select(1, places), out, weights)
            moved = _change(x.index_select(1, places), own, (-2, -1))
            new = (self.num_tokens - start).clamp(max=sweep_size)
            moved = torch.where(tries + 1 < new, moved, 0)
            done = (tries + 1 >= max_sweeps) | ~_moving(moved, given).any()
            return (
                torch.where(done, start + sweep_size, start),
                torch.where(done, 0, tries + 1),
                count + 1,
                x.index_copy(1, places, own),
                log_slopes.index_copy(1, places, log_slope),
                torch.where(done, change.maximum(moved), change),
                caches,
            )

        first, tries = (torch.zeros(1, dtype=torch.int64, device=tokens.device) for _ in range(2))
        count = torch.zeros((), dtype=torch.int64, device=tokens.device)
        empty = tokens.new_zeros(tokens.shape), tokens.new_zeros(len(tokens))
        x = tokens.clone(memory_format=torch.contiguous_format)
        _, _, count, x, log_slopes, change, _ = while_loop(
            going, sweep, (first, tries, count, x, *empty, caches)
        )
        return x, log_slopes, count, change

    @full_precision
    def explicit_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        """One token after the other."""
        tokens, seen, context = self._rows(z, context)
        without = not torch.is_grad_enabled()
        if without and loops():
            found, log_det = self._loop(tokens, seen, context)
        else:
            found, log_det = self._steps(tokens, seen, context, is_eager() and without)
        x = found.reshape(*z.shape[:-1], self.num_tokens, self.token_dim)
        return self._vector(x), log_det.reshape(z.shape[:-1])

    def _steps(
        self, tokens: Tensor, seen: Tensor, context: Tensor | None, in_place: bool
    ) -> Output:
        """The tokens ``(batch, num_tokens, token_dim)`` of x, and the log-det."""
        state = self.network.begin(seen, context, in_place)
        found, log_slopes = [], []
        for t, token in enumerate(tokens.split(1, 1)):
            x, log_slope = self._solve(
                token, self.network.step(t, seen, state), self._weights(t, 1)
            )
            seen = self._seen(x)
            found.append(x)
            log_slopes.append(log_slope.sum((-2, -1)))
        return torch.cat(found, 1), torch.stack(log_slopes).sum(0)

    def _loop(self, tokens: Tensor, seen: Tensor, context: Tensor | None) -> Output:
        """``_steps`` as one loop of the compiled program, which does not grow with the number of tokens."""
        state, caches = self._carried(seen, context)
        count, weights = self.num_tokens, self._weights(0, self.num_tokens)
        place = torch.arange(count, device=tokens.device)

        def packed(token: Tensor) -> Tensor:
            # one row is contiguous whatever its strides, which loops compare
            return token.clone(memory_format=torch.contiguous_format)

        def going(t: Tensor, *_: Tensor) -> Tensor:
            return (t < count).squeeze(0)

        def step(
            t: Tensor, seen: Tensor, x: Tensor, log_det: Tensor, caches: Tensor
        ) -> tuple[Tensor, ...]:
            out, caches = self.network.step_at(t, seen, caches, state)
            weight = None if weights is None else weights.index_select(0, t)
            own, log_slope = self._solve(tokens.index_select(1, t), out, weight)
            x = torch.where((place == t).unsqueeze(-1), own, x)
            return t + 1, packed(self._seen(own)), x, log_det + log_slope.sum((-2, -1)), caches

        first = torch.zeros(1, dtype=torch.int64, device=tokens.device)
        empty = tokens.new_zeros(tokens.shape), tokens.new_zeros(len(tokens))
        start = first, packed(seen), *empty, caches
        _, _, x, log_det, _ = while_loop(going, step, start)
        return x, log_det

    def _carried(self, seen: Tensor, context: Tensor | None) -> tuple[Steps, Tensor]:
        """What a compiled loop starts from: what stays as it is, and the caches of all blocks and places."""
        state, count = self.network.begin(seen, context, True), self.num_tokens
        caches = torch.stack([torch.stack(cache) for cache in state.caches])
        # loops take no views of one array
        copies = [m and tuple([part.clone() for part in m]) for m in state.memories]
        # places that are still empty are multiplied by 0
        known = torch.arange(caches.shape[-2], device=seen.device) < caches.shape[-2] - count
        caches = torch.where(known.unsqueeze(-1), caches, 0)
        return Steps(state.term, state.caches, copies), caches

    def _rows(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """z as tokens of one batch axis, what the network is given before any is known, and the context."""
        tokens = self._tokens(z).reshape(-1, self.num_tokens, self.token_dim)
        if context is not None:
            context = context.reshape(-1, self.network.options.context_dim)
        return tokens, self._seen(tokens[:, :1]), context

    def _weights(self, t: int, count: int) -> Tensor | None:
        """Those of the guidance for tokens from t on, ``(count, 1)``."""
        if self.weights is None:
            return None
        return self.network.beginning.new_tensor(self.weights[t : t + count]).unsqueeze(-1)

    def _solve(self, tokens: Tensor, out: Tensor, weights: Tensor | None) -> Output:
        """x of tokens ``(batch, n, token_dim)`` of z, from what the network gave for their places, and the
        weights of their guidance."""
        out = out.to(tokens.dtype)
        if weights is not None:
            out = _guide(out.unflatten(0, (-1, 2)).transpose(1, 2), weights.to(out))
        return self.map.inverse(tokens, out.unflatten(-1, (self.token_dim, -1)))

    def _seen(self, x: Tensor) -> Tensor:
        """What the network sees of tokens, once for each context."""
        seen = self.map.features(x, -1)
        return seen if self.weights is None else seen.repeat_interleave(2, 0)

    def _parameters_of(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Those of every entry, ``(*batch, num_tokens, token_dim, num_parameters)``."""
        seen = self.map.features(tokens, -1)
        if self.weights is None:
            out = self.network(seen, context)
        else:
            seen = seen.unsqueeze(-3).expand(*seen.shape[:-2], 2, -1, -1)
            out = self.network(seen, context.unflatten(-1, (2, -1)))  # type: ignore[union-attr]
            weights = out.new_tensor(self.weights).unsqueeze(-1)
            out = _guide(out.transpose(-3, -2), weights)
        return out.to(tokens.dtype).unflatten(-1, (self.token_dim, -1))

    def _tokens(self, x: Tensor) -> Tensor:
        """The tokens in the order of generation, ``(*batch, num_tokens, token_dim)``."""
        tokens = x.unflatten(-1, (self.num_tokens, self.token_dim))
        return tokens if self.order is None else tokens.index_select(-2, self.generated)

    def _vector(self, tokens: Tensor) -> Tensor:
        """The inverse of ``_tokens``."""
        if self.order is not None:
            tokens = tokens.index_select(-2, self.position)
        return tokens.flatten(-2)


def _finite(x: Tensor) -> Tensor:
    """x without infinities: what overflows before its turn is not to reach the tokens before it, as 0 times
    infinity."""
    return torch.where(x.isfinite(), x, 0)


def _change(before: Tensor, x: Tensor, axes: Any) -> Tensor:
    """By how much a sweep moved each row."""
    return ((x - before).abs() / (1 + x.abs())).amax(axes)


def _moving(change: Tensor, given: Any) -> Tensor:
    """Which of the given rows are not solved."""
    return ~(change <= bridge.SWEEP_TOLERANCE * torch.finfo(change.dtype).eps) & given


def _guide(pair: Tensor, weight: Any) -> Tensor:
    """Parameters ``(*batch, 2, count)`` of two contexts, those of the first moved away from the second's."""
    given, free = pair.unbind(-2)
    return given + weight * (given - free)


class _Steps(nn.Module):
    """The inverse by steps as a module's call."""

    def __init__(self, bijector: TransformerAutoregressive) -> None:
        super().__init__()
        self.bijector = bijector

    def forward(self, z: Tensor, context: Tensor | None) -> Output:
        return self.bijector.explicit_inverse(z, context)


class _Recomputed(torch.autograd.Function):
    """The inverse as it is without gradients; the steps that have them are taken in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        bijector: TransformerAutoregressive,
        names: tuple[str, ...],
        z: Tensor,
        context: Tensor | None,
        *weights: Tensor,
    ) -> Output:
        ctx.bijector, ctx.names = bijector, names
        ctx.save_for_backward(z, context, *weights)
        return bijector.map_inverse(z, context)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed, again = ctx.needs_input_grad[2:], torch.is_grad_enabled()
        with torch.enable_grad():
            # by these, as z itself may depend on the context
            z, context, *weights = given = [
                tracked(x, again) if need else x
                for x, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            # the weights of that time, which ``functional_call`` may have put there
            state = {f"bijector.{n}": w for n, w in zip(ctx.names, weights, strict=True)}
            outputs = functional_call(_Steps(ctx.bijector), state, (z, context))
            inputs = [x for x, need in zip(given, needed, strict=True) if need]
            # without those that are constant, as the log-det of a shift
            pairs = [p for p in zip(outputs, gradients, strict=True) if p[0].requires_grad]
            found = iter(
                torch.autograd.grad(
                    [output for output, _ in pairs],
                    inputs,
                    [gradient for _, gradient in pairs],
                    create_graph=again,
                    allow_unused=True,
                )
            )
        return None, None, *(next(found) if need else None for need in needed)

"""One univariate map for some entries, another for others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import Interval, placed
from flow_bridge.masks import as_index
from jax_flows.registry import register
from jax_flows.univariate.base import Output, UnivariateMap


@register
@dataclass(frozen=True)
class MixedMap(UnivariateMap):
    """One univariate map for these positions of a vector, another for those: mixed spaces.

    So that real, circular and bounded coordinates condition each other in one flow of ``Coupling`` and
    ``Elementwise`` layers: each is transformed by the map of its kind, and networks see of each what that
    map shows them. Every position gets as many parameters as the map with most of them takes; the others
    leave theirs.

    Args:
        maps: the maps.
        columns: for each the positions of its entries; every position once.

    Raises:
        ValueError: for columns that do not hold every position once.

    Reference: Rezende et al. (2020), arXiv:2002.02428, for products of spaces.

    Examples:
        >>> import jax, jax_flows
        >>> maps = [jax_flows.AffineMap(), jax_flows.MoebiusMap()]
        >>> map = jax_flows.MixedMap(maps, [[0, 2], [1]])
        >>> bijector = jax_flows.Coupling(3, map)
        >>> variables = bijector.init(jax.random.key(0))
        >>> bijector.forward(variables, jax.numpy.ones((5, 3)))[0].shape
        (5, 3)
    """

    maps: Sequence[UnivariateMap]
    columns: Sequence[Sequence[int]]
    indices: list[Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.instances("MixedMap", "maps", self.maps, UnivariateMap)
        for map in self.maps:
            checks.one_map("MixedMap", map)
        object.__setattr__(self, "maps", tuple(self.maps))
        object.__setattr__(self, "columns", tuple(tuple(block) for block in self.columns))
        order = checks.block_order(
            "MixedMap", self.columns, [((None,),) * 2] * len(self.maps), "maps"
        )
        blocks = [as_index(np.array(block)) for block in (*self.columns, order.tolist())]
        object.__setattr__(self, "indices", blocks)

    @property
    def dim(self) -> int:  # type: ignore[override]
        return sum(len(block) for block in self.columns)

    @property
    def num_parameters(self) -> int:
        return max(map.num_parameters for map in self.maps)

    def num_inputs(self, dim: int) -> int:
        pairs = zip(self.maps, self.columns, strict=True)
        return sum(map.num_features * len(block) for map, block in pairs)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return placed(self.columns, [map.intervals(inverse) for map in self.maps])

    def part(self, positions: Sequence[int]) -> UnivariateMap:
        blocks = [[i for i, p in enumerate(positions) if p in block] for block in self.columns]
        kept = [(map, block) for map, block in zip(self.maps, blocks, strict=True) if block]
        return MixedMap([map for map, _ in kept], [block for _, block in kept])

    def features(self, x: Array, axis: int) -> Array:
        parts = self._each(x, lambda map, part, index: map.features(part, -1))
        return jnp.concatenate(parts, -1)

    def forward(self, x: Array, parameters: Array) -> Output:
        return self._joined(self._each(x, lambda map, part, index: map.forward(
            part, parameters[..., index, : map.num_parameters])))  # fmt: skip

    def inverse(self, z: Array, parameters: Array) -> Output:
        return self._joined(self._each(z, lambda map, part, index: map.inverse(
            part, parameters[..., index, : map.num_parameters])))  # fmt: skip

    def _each(self, x: Array, step: Callable[..., Any]) -> list[Any]:
        """What every map makes of its entries."""
        pairs = zip(self.maps, self.indices[:-1], strict=True)
        return [step(map, x[..., index], index) for map, index in pairs]

    def _joined(self, parts: Sequence[Output]) -> Output:
        joined = [
            jnp.concatenate([part[i] for part in parts], -1)[..., self.indices[-1]]
            for i in range(2)
        ]
        return joined[0], joined[1]

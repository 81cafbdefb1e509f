"""Arrays apart from what uses them: Flax-style nested dicts."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Variables = Mapping[str, Any]


Output = tuple[Array, Array]


class HasVariables(ABC):
    """What owns arrays: its ``init`` makes them, its other methods take them as ``variables``."""

    is_architecture = True

    def init(self, key: Array, dtype: Any = None) -> dict[str, Any]:
        """Fresh variables from a PRNG key, in ``dtype`` (JAX's default float type if not given)."""
        return _init(self, key, jnp.dtype(jnp.result_type(float) if dtype is None else dtype))

    def shapes(self) -> dict[str, Any]:
        """The variables' shapes and types, without computing anything."""
        return jax.eval_shape(self.init, jax.random.key(0))

    @abstractmethod
    def init_variables(self, key: Array, dtype: Any) -> Variables: ...


@partial(jax.jit, static_argnums=(0, 2))
def _init(owner: HasVariables, key: Array, dtype: Any) -> dict[str, Any]:
    return {"params": {}, "batch_stats": {}, **owner.init_variables(key, dtype)}


def freeze_lists(instance: Any) -> None:
    """Turn list-valued fields of a frozen dataclass into tuples, so that it can be hashed."""
    for field in dataclasses.fields(instance):
        if field.init and isinstance(value := getattr(instance, field.name), list):
            object.__setattr__(instance, field.name, tuple(value))


def child(variables: Variables, name: str) -> dict[str, Any]:
    """The variables of one part."""
    return {collection: tree.get(name, {}) for collection, tree in variables.items()}


def gather(children: Mapping[str, Variables]) -> dict[str, Any]:
    """The variables of a whole from those of its parts; parts without any leave no trace."""
    return {
        collection: {name: v[collection] for name, v in children.items() if v.get(collection)}
        for collection in ("params", "batch_stats")
    }


def weight_dtype(variables: Variables) -> Any:
    """The dtype of the trainable weights, or ``None`` if there are none."""
    leaves = jax.tree.leaves(variables.get("params", {}))
    return leaves[0].dtype if leaves else None

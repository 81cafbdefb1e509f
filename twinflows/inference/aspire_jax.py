"""The flow of JAX for aspire, by the entry point ``twinflows-jax``."""

from typing import Any

import jax
import jax.numpy as jnp

from twinflows.inference.aspire import TwinFlow


class JaxTwinFlow(TwinFlow):
    """A named model of ``jax_flows``; see ``TwinFlow``. Its methods may be traced."""

    backend = "jax"
    xp = jnp

    def density(self, rows: Any) -> Any:
        return jax.jit(self.flow.log_prob)(self._variables, rows)

    def to_latent(self, rows: Any) -> tuple[Any, Any]:
        return jax.jit(self.flow.forward)(self._variables, rows)

    def from_latent(self, z: Any) -> tuple[Any, Any]:
        return jax.jit(self.flow.inverse)(self._variables, z)

    @property
    def _variables(self) -> Any:
        model: Any = self.model
        return model.variables

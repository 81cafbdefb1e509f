"""The flow of PyTorch for aspire, by the entry point ``twinflows-torch``."""

from typing import Any

import array_api_compat.torch
import torch

from twinflows.inference.aspire import TwinFlow


class TorchTwinFlow(TwinFlow):
    """A named model of ``torch_flows``; see ``TwinFlow``."""

    backend = "torch"
    xp = array_api_compat.torch

    @torch.no_grad()
    def density(self, rows: Any) -> Any:
        return self.flow.log_prob(rows)

    @torch.no_grad()
    def to_latent(self, rows: Any) -> tuple[Any, Any]:
        return self.flow.forward(rows)

    @torch.no_grad()
    def from_latent(self, z: Any) -> tuple[Any, Any]:
        return self.flow.inverse(z)

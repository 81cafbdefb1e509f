"""Writes realnvp_normflows.safetensors: affine couplings of normflows on given weights and inputs.

Needs normflows 1.7.3; run as ``python -m parity_tests.golden.make_realnvp`` with the extra
``benchmarks`` installed. The tests read the file and need no peer.
"""

from pathlib import Path

import normflows
import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

DIM, HIDDEN, LAYERS, ROWS = 5, 7, 4, 16


def network(arrays: dict[str, np.ndarray], prefix: str, last: nn.Module | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(3):
        weight, bias = (arrays[f"{prefix}.layers.{i}.{name}"] for name in ("weight", "bias"))
        linear = nn.Linear(*weight.shape[::-1]).double()
        linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        layers += [linear, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1], *([last] if last else []))


def main() -> None:
    generator = np.random.default_rng(0)
    shapes = [(HIDDEN, DIM), (HIDDEN, HIDDEN), (DIM, HIDDEN)]
    arrays = {}
    for i in range(LAYERS):
        for net in ("scale_net", "shift_net"):
            for j, shape in enumerate(shapes):
                name = f"bijectors.{i}.{net}.layers.{j}"
                arrays[f"{name}.weight"] = generator.standard_normal(shape) / np.sqrt(shape[1])
                arrays[f"{name}.bias"] = generator.standard_normal(shape[0])
    x = 2 * generator.standard_normal((ROWS, DIM))
    z, log_det = torch.tensor(x), torch.zeros(ROWS, dtype=torch.float64)
    for i in range(LAYERS):
        mask = torch.tensor([(j + i + 1) % 2 for j in range(DIM)], dtype=torch.float64)
        scale = network(arrays, f"bijectors.{i}.scale_net", nn.Tanh())
        shift = network(arrays, f"bijectors.{i}.shift_net", None)
        z, term = normflows.flows.MaskedAffineFlow(mask, shift, scale)(z)
        log_det = log_det + term
    arrays |= {"x": x, "z": z.detach().numpy(), "log_det": log_det.detach().numpy()}
    save_file(arrays, Path(__file__).with_name("realnvp_normflows.safetensors"))


if __name__ == "__main__":
    main()

"""Writes nflows_made.npz: the masked network of nflows 0.14. Run where nflows is.

Its hidden degrees go 1, ..., dim - 1 round and round, ours ascend: with hidden widths divisible by
dim - 1 the two are the same network with its units in another order, in which it is written here.
"""

from pathlib import Path

import numpy as np
import torch
from nflows.transforms.made import MADE

DIM, HIDDEN = 5, 12


def main() -> None:
    torch.manual_seed(0)
    network = MADE(
        DIM,
        HIDDEN,
        num_blocks=2,
        output_multiplier=2,
        use_residual_blocks=False,
        activation=torch.tanh,
    ).double()
    linears = [network.initial_layer, *(b.linear for b in network.blocks), network.final_layer]
    by_degree = torch.argsort(linears[0].degrees, stable=True)
    arrays = {}
    for i, linear in enumerate(linears):
        linear.weight.data = torch.randn_like(linear.weight)
        weight = linear.weight if i == 0 else linear.weight[:, by_degree]
        bias = linear.bias
        if i < len(linears) - 1:
            weight, bias = weight[by_degree], bias[by_degree]
        arrays |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
    x = torch.randn(7, DIM, dtype=torch.float64)
    arrays |= {"x": x, "parameters": network(x).unflatten(-1, (DIM, 2))}
    path = Path(__file__).with_name("nflows_made.npz")
    np.savez(path, **{name: array.detach().numpy() for name, array in arrays.items()})


if __name__ == "__main__":
    main()

"""Writes nflows_spline.npz: the spline of nflows 0.14 on knots that ours shares. Run where nflows is.

nflows takes the raw derivatives without our offset (its zero is not the identity), so it is added.
"""

from pathlib import Path

import numpy as np
import torch
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

NUM_BINS, TAIL_BOUND = 6, 3.0


def main() -> None:
    generator = np.random.default_rng(0)
    parameters = 1.5 * generator.standard_normal((80, 3 * NUM_BINS - 1))
    x = np.concatenate([generator.uniform(-TAIL_BOUND, TAIL_BOUND, 72), 4 * np.arange(-4, 4)])
    widths, heights, derivatives = torch.from_numpy(parameters).split(
        [NUM_BINS, NUM_BINS, NUM_BINS - 1], -1
    )
    arrays = {"x": x, "parameters": parameters, "tail_bound": np.float64(TAIL_BOUND)}
    for name, inverse in (("forward", False), ("inverse", True)):
        y, log_slope = unconstrained_rational_quadratic_spline(
            torch.from_numpy(x.copy()),
            widths.clone(),
            heights.clone(),
            derivatives + np.log(np.expm1(1 - 1e-3)),
            inverse=inverse,
            tail_bound=TAIL_BOUND,
        )
        arrays |= {name: y.numpy(), f"{name}_log_slope": log_slope.numpy()}
    np.savez(Path(__file__).with_name("nflows_spline.npz"), **arrays)


if __name__ == "__main__":
    main()

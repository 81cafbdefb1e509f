"""Writes files of both halves, with what the models in them compute: ``files_v1/``.

Run once for a format version, by the release that introduces it: later ones must read these files.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import jax_flows
import torch_flows
from flow_bridge import jax_to_torch, torch_to_jax

FOLDER = Path(__file__).parent / "files_v1"


def arch(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": name, **arguments}


MODELS: dict[str, dict[str, Any]] = {
    "realnvp": arch("RealNVP", dim=3, hidden_dims=[3, 3], num_layers=2, context_dim=2),
    "nice": arch("NICE", dim=3, hidden_dims=[3], num_layers=2),
    "spline": arch("NeuralSplineFlow", dim=2, hidden_dims=[3], num_layers=1, num_bins=3),
    "maf": arch("MAF", dim=3, hidden_dims=[4], num_layers=2),
    "residual": arch("ResidualFlow", dim=2, hidden_dims=[3], num_blocks=1, log_det="series"),
    "glow": arch("Glow", shape=[1, 4, 4], num_levels=1, num_steps=1, hidden_channels=2),
    "mixed": arch(
        "Flow",
        bijector=arch(
            "Chain",
            bijectors=[
                arch("Invert", bijector=arch("LeakyReLU", negative_slope=0.2)),
                arch("Permutation", permutation=[2, 0, 1]),
                arch("RandomPermutation", dim=3, seed=5),
                arch("LULinear", dim=3),
                arch("Rotation", dim=3),
                arch("AffineCoupling", dim=3, hidden_dims=[2], mask=[1, 0, 1], activation="tanh"),
                arch("MaskedSplineAutoregressive", dim=3, hidden_dims=[3], order="random:7", num_bins=2),
                arch("Sylvester", dim=3, rank=2),
                arch("Radial", dim=3),
                arch("BatchNorm", dim=3, eps=1e-4),
            ],
        ),
        base=arch("GaussianMixture", dim=3, num_components=2),
    ),
    "heavy": arch("Flow", bijector=arch("Planar", dim=2), base=arch("StudentT", dim=2, df=3.5)),
}  # fmt: skip


def inputs(flow: Any) -> tuple[np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, *flow.event_shape)) - 1.5
    return x, rng.normal(size=(5, flow.context_dim)) if flow.context_dim else None


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    FOLDER.mkdir(exist_ok=True)
    outputs = {}
    for i, (name, architecture) in enumerate(MODELS.items()):
        flow = torch_flows.build(architecture).double().eval()
        rng = np.random.default_rng(i)
        state = {}
        for key, value in flow.state_dict().items():
            noise = 0.5 * rng.normal(size=tuple(value.shape))
            state[key] = np.abs(noise) + 0.5 if key.endswith("var") else noise
        flow.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
        torch_flows.save(flow, FOLDER / f"{name}_torch.safetensors")
        twin = jax_flows.build(architecture)
        variables = torch_to_jax(jax_to_torch(torch_to_jax(state, twin.shapes())), twin.shapes())
        jax_flows.save(twin, variables, FOLDER / f"{name}_jax.safetensors")
        x, context = inputs(flow)
        given = None if context is None else torch.from_numpy(context)
        with torch.no_grad():
            outputs[name] = flow.log_prob(torch.from_numpy(x), given).numpy()
        assert np.isfinite(outputs[name]).all(), name
    np.savez(FOLDER / "log_prob.npz", **outputs)


if __name__ == "__main__":
    main()

"""A user's program, written as the pages write it, passes ``mypy --strict``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax
import numpy as np
import torch

import jax_flows
import torch_flows
from twinflows import check_parity

data = np.zeros((100, 2), np.float32)

flow = torch_flows.Flow(
    torch_flows.Chain([torch_flows.AffineCoupling(2, hidden_dims=[8, 8]), torch_flows.Planar(2)]),
    torch_flows.StandardNormal([2]),
)
history = torch_flows.fit(flow, data, num_epochs=2)
x = torch.from_numpy(data)
log_prob: torch.Tensor = flow.log_prob(x)
samples: torch.Tensor = flow.sample(3) + flow.sample((3,))
z, log_det = flow.forward(x)
member: torch_flows.Bijector = torch_flows.Chain([torch_flows.Planar(2)])[0]
torch_flows.save(flow, "flow.safetensors")
loaded = torch_flows.load("flow.safetensors")
print(loaded.log_prob(x))

twin = jax_flows.Flow(
    jax_flows.Chain([jax_flows.AffineCoupling(2, hidden_dims=[8, 8]), jax_flows.Planar(2)]),
    jax_flows.StandardNormal([2]),
)
variables = twin.init(jax.random.key(0))
variables, twin_history = jax_flows.fit(twin, variables, data, num_epochs=2)
scores: jax.Array = twin.log_prob(variables, data)
draws = twin.sample(variables, jax.random.key(1), 3)
twin_z, twin_log_det = twin.forward(variables, data, None)
for layer in jax_flows.Chain([jax_flows.Planar(2)] * 2):
    print(layer.event_shape)
nice = jax_flows.NICE(2, hidden_dims=[8, 8])
jax_flows.save(twin, variables, "twin.safetensors")
again, arrays = jax_flows.load("twin.safetensors")
print(again.log_prob(arrays, data), check_parity(flow, data).passed)
"""


@pytest.mark.slow
def test_a_users_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(program)]
    environment = {**os.environ, "MYPYPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout

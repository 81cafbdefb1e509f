"""Each half imports where the other framework is absent, and importing changes nothing global."""

import subprocess
import sys

import pytest

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError(f'{{name}} is not installed')
sys.meta_path.insert(0, Block())
"""
JAX_STACK = ("jax", "jaxlib", "flax", "optax")
ALONE = {
    "torch": (JAX_STACK, """
import torch, torch_flows
before = torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed()
flow = torch_flows.RealNVP(2, hidden_dims=(4, 4), num_layers=2)
torch_flows.save(flow, {path!r})
x = torch.zeros(3, 2)
assert torch.equal(torch_flows.load({path!r}).log_prob(x), flow.eval().log_prob(x))
torch_flows.fit(flow, torch.randn(40, 2), num_epochs=1, progress=False)
"""),
    "jax": (("torch",), """
import jax, jax_flows, numpy as np
flow = jax_flows.RealNVP(2, hidden_dims=(4, 4), num_layers=2)
variables = flow.init(jax.random.key(0))
jax_flows.save(flow, variables, {path!r})
twin, loaded = jax_flows.load({path!r})
assert twin == flow and jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), loaded, variables))
"""),
    "bridge": ((*JAX_STACK, "torch"), """
import flow_bridge, pkgutil, importlib
for module in pkgutil.iter_modules(flow_bridge.__path__):
    importlib.import_module(f'flow_bridge.{{module.name}}')
import twinflows
assert twinflows.inference.effective_sample_size([0.0, 0.0]) == 2
heavy = {{'torch', 'jax', 'flax', 'scipy', 'sklearn', 'matplotlib', 'arviz'}}
assert not heavy & set(sys.modules)
"""),
}  # fmt: skip


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ALONE)
def test_works_alone(name: str, tmp_path) -> None:
    blocked, code = ALONE[name]
    python(BLOCK.format(blocked=blocked) + code.format(path=str(tmp_path / "m.safetensors")))


def test_importing_changes_nothing_global() -> None:
    python("""
import random
import flax, jax, numpy as np, torch
before = (torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().sum(),
          jax.config.jax_enable_x64, np.random.get_state()[1].sum(), random.getstate())
import torch_flows, jax_flows, twinflows.parity.compare, twinflows.command.cli
after = (torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().sum(),
         jax.config.jax_enable_x64, np.random.get_state()[1].sum(), random.getstate())
assert before == after
""")

"""What a user touches: arrays, variables, modes, and the parts of a flow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch

import jax_flows
import torch_flows

pytestmark = pytest.mark.usefixtures("quick_jax")

KEY = jax.random.key(0)
ROWS = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("x", "in_torch", "in_jax"),
    [
        (ROWS, "a torch.Tensor, got ndarray: torch.from_numpy(x).", None),
        (ROWS.tolist(), "got list: torch.tensor(x).", "an array, got list: jax.numpy.array(x)."),
        (pd.DataFrame(ROWS), "torch.from_numpy(x.to_numpy()).", "got DataFrame: x.to_numpy()."),
        (np.ma.MaskedArray(ROWS), "torch.from_numpy(x.filled()).", "got MaskedArray: x.filled()."),
        (torch.zeros(3, 2), None, "got Tensor: x.numpy()."),
        (jnp.zeros((3, 2), jnp.float32), "torch.from_numpy(numpy.array(x)).", None),
        (None, "expects x as a torch.Tensor, got NoneType.", "as an array, got NoneType."),
    ],
)
def test_what_is_no_array_is_told_how_to_become_one(x: Any, in_torch: Any, in_jax: Any) -> None:
    twin = jax_flows.Affine(2)
    variables = twin.init(KEY, "float32")
    for call, message in (
        (lambda: torch_flows.Affine(2).forward(x), in_torch),
        (lambda: twin.forward(variables, x), in_jax),
    ):
        if message is None:
            call()
        else:
            with pytest.raises(TypeError) as info:
                call()
            assert str(info.value).endswith(message)


def test_float64_is_not_rounded_behind_the_back() -> None:
    for owner in (jax_flows.Exp(), jax_flows.StandardNormal(2)):
        method = owner.log_prob if hasattr(owner, "log_prob") else owner.forward
        with jax.enable_x64(False), pytest.raises(TypeError, match="float64, which JAX rounds"):
            method({}, np.zeros((3, 2)))


def test_parts_of_several_dtypes_are_refused() -> None:
    chain = torch_flows.Chain([torch_flows.Affine(2), torch_flows.Affine(2).double()])
    with pytest.raises(TypeError, match="Chain has weights of several dtypes: float32 and float64"):
        chain.forward(torch.zeros(3, 2))
    flow = torch_flows.Flow(torch_flows.Affine(2), torch_flows.DiagonalNormal(2).double())
    with pytest.raises(TypeError, match="DiagonalNormal has float64 weights but z is float32"):
        flow.log_prob(torch.zeros(3, 2))


def test_how_many_samples() -> None:
    flow = torch_flows.Flow(torch_flows.Affine(2), torch_flows.StandardNormal(2))
    twin = jax_flows.Flow(jax_flows.Affine(2), jax_flows.StandardNormal(2))
    variables = twin.init(KEY, "float32")
    for size, shape in (
        (np.int64(3), (3, 2)),
        ([np.int32(2), 3], (2, 3, 2)),
        (0, (0, 2)),
        ((), (2,)),
    ):
        assert flow.sample(size).shape == twin.sample(variables, KEY, size).shape == shape  # type: ignore[arg-type]
    assert flow.sample().shape == twin.sample(variables, KEY).shape == (2,)
    with pytest.raises(ValueError, match="num_samples as an integer"):
        jax.jit(twin.sample)(variables, KEY, 3)

"""Bad input gets one clear sentence, the same in both halves."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from parity_tests.sentences import same

X = np.zeros((4, 3), np.float32)
C = np.zeros((4, 2), np.float32)


class Half:
    """One half behind the calls that the table below makes."""

    def __init__(self, module: Any) -> None:
        self.module, self.is_torch = module, module is torch_flows

    def array(self, value: Any) -> Any:
        return torch.from_numpy(value) if self.is_torch and isinstance(value, np.ndarray) else value

    def call(self, method: str, name: str, arguments: dict[str, Any], *arrays: Any) -> Any:
        model = getattr(self.module, name)(**arguments)
        given = [self.array(a) for a in arrays]
        if self.is_torch:
            return getattr(model, method)(*given)
        return getattr(model, method)(model.init(jax.random.key(0), np.float32), *given)

    def sample(
        self, name: str, arguments: dict[str, Any], num_samples: Any, context: Any = None
    ) -> Any:
        bijector = getattr(self.module, name)(**arguments)
        flow = self.module.Flow(bijector, self.module.StandardNormal(3))
        if self.is_torch:
            return flow.sample(num_samples, context)
        return flow.sample(flow.init(jax.random.key(0)), jax.random.key(1), num_samples, context)

    def fit(self, x: np.ndarray, **options: Any) -> Any:
        flow = self.module.PlanarFlow(3, num_layers=2)
        options = {"progress": False, "num_epochs": 1} | options
        if self.is_torch:
            return self.module.fit(flow, x, **options)
        return self.module.fit(flow, flow.init(jax.random.key(0), np.float32), x, **options)


CONDITIONAL = {"dim": 3, "context_dim": 2}
BAD: dict[str, tuple[Callable[[Half], Any], type[Exception], str]] = {
    "last dimension": (
        lambda h: h.call("forward", "Planar", {"dim": 2}, X), ValueError,
        "Planar expects x of shape (*batch, 2), got (4, 3).",
    ),
    "no dimension": (
        lambda h: h.call("log_prob", "RealNVP", {"dim": 3}, X[0, 0] * np.ones((), np.float32)),
        (ValueError, TypeError), None,
    ),
    "inverse": (
        lambda h: h.call("inverse", "RealNVP", {"dim": 2}, X), ValueError,
        "RealNVP expects z of shape (*batch, 2), got (4, 3).",
    ),
    "integers": (
        lambda h: h.call("forward", "Planar", {"dim": 3}, X.astype(np.int64)), TypeError,
        "Planar expects x in floating point, got int64.",
    ),
    "booleans": (
        lambda h: h.call("forward", "Planar", {"dim": 3}, X > 0), TypeError,
        "Planar expects x in floating point, got bool.",
    ),
    "complex": (
        lambda h: h.call("forward", "Planar", {"dim": 3}, X.astype(np.complex64)), TypeError,
        "Planar expects x in floating point, got complex64.",
    ),
    "a list": (
        lambda h: h.call("forward", "Planar", {"dim": 3}, [[0.0] * 3]), TypeError,
        None,
    ),
    "a list as context": (
        lambda h: h.sample("Planar", CONDITIONAL, 2, [0.0, 0.0]), TypeError,
        "Flow expects context as an array, got list: array(context).",
    ),
    "samples without a context": (
        lambda h: h.sample("Planar", CONDITIONAL, 2, None), ValueError,
        "Flow needs a context of shape (*batch, 2), got none.",
    ),
    "too many dimensions for a base": (
        lambda h: h.call("log_prob", "StandardNormal", {"dim": 2}, X), ValueError,
        "StandardNormal expects z of shape (*batch, 2), got (4, 3).",
    ),
    "too few dimensions for a base": (
        lambda h: h.call("log_prob", "GaussianMixture", {"dim": 2, "num_components": 3}, X[:, :1]),
        ValueError, "GaussianMixture expects z of shape (*batch, 2), got (4, 1).",
    ),
    "noise of a base": (
        lambda h: h.call("from_noise", "StudentT", {"dim": 3, "df": 2.0}, X), ValueError,
        "StudentT expects noise of shape (*batch, 2, 3), got (4, 3).",
    ),
    "dtype of a base": (
        lambda h: h.call("log_prob", "DiagonalNormal", {"dim": 3}, X.astype(np.float16)), TypeError,
        "DiagonalNormal has float32 weights but z is float16; convert one of the two, "
        "as with .astype(float32).",
    ),
    "integers for a base": (
        lambda h: h.call("log_prob", "Uniform", {"dim": 3}, X.astype(np.int32)), TypeError,
        "Uniform expects z in floating point, got int32.",
    ),
    "a probe of another shape": (
        lambda h: h.call("forward_with_noise", "ContinuousBijector", {"dim": 3}, X, X[:1]),
        ValueError, "ContinuousBijector expects noise of shape (4, 3), got (1, 3).",
    ),
    "samples by a float": (
        lambda h: h.sample("Planar", {"dim": 3}, 5.0), ValueError,
        "Flow expects num_samples as an integer of at least 0 or a shape of them, got 5.0.",
    ),
    "samples below 0": (
        lambda h: h.sample("Planar", {"dim": 3}, -1), ValueError,
        "Flow expects num_samples as an integer of at least 0 or a shape of them, got -1.",
    ),
    "samples by a truth value": (
        lambda h: h.sample("Planar", {"dim": 3}, True), ValueError,
        "Flow expects num_samples as an integer of at least 0 or a shape of them, got True.",
    ),
    "missing context": (
        lambda h: h.call("log_prob", "RealNVP", CONDITIONAL, X), ValueError,
        "RealNVP needs a context of shape (*batch, 2), got none.",
    ),
    "unwanted context": (
        lambda h: h.call("log_prob", "RealNVP", {"dim": 3}, X, C), ValueError,
        "RealNVP takes no context, got one of shape (4, 2).",
    ),
    "narrow context": (
        lambda h: h.call("log_prob", "RealNVP", CONDITIONAL, X, C[:, :1]), ValueError,
        "RealNVP needs a context of shape (*batch, 2), got (4, 1).",
    ),
    "context of another batch": (
        lambda h: h.call("forward", "Planar", CONDITIONAL, X, C[:3]), ValueError,
        "Planar got a context of batch shape (3,), which does not broadcast to the batch shape "
        "(4,) of its input.",
    ),
    "context of another dtype": (
        lambda h: h.call("forward", "Planar", CONDITIONAL, X, C.astype(np.float16)), TypeError,
        "Planar expects context in float32 like its input, got float16.",
    ),
    "dim 0": (
        lambda h: h.module.Planar(0), ValueError,
        "Planar expects dim to be an integer of at least 1, got 0.",
    ),
    "dim as float": (
        lambda h: h.module.RealNVP(2.0), ValueError,
        "RealNVP expects dim as an integer, got 2.0.",
    ),
    "no layers": (
        lambda h: h.module.PlanarFlow(2, num_layers=0), ValueError,
        "PlanarFlow expects num_layers to be an integer of at least 1, got 0.",
    ),
    "hidden width": (
        lambda h: h.module.AffineCoupling(2, hidden_dims=(4, -1)), ValueError,
        "MLP expects hidden_dims[1] to be an integer of at least 1, got -1.",
    ),
    "mask fixes everything": (
        lambda h: h.module.AffineCoupling(3, mask=(1, 1, 1)), ValueError,
        "mask (1, 1, 1) fixes everything at dim 3: a coupling needs at least one fixed and one "
        "free dimension.",
    ),
    "mask fixes nothing": (
        lambda h: h.module.AffineCoupling(3, mask=(0, 0, 0)), ValueError,
        "mask (0, 0, 0) fixes nothing at dim 3: a coupling needs at least one fixed and one free "
        "dimension.",
    ),
    "coupling at dim 1": (
        lambda h: h.module.RealNVP(1), ValueError,
        "mask 'even' fixes everything at dim 1: a coupling needs dim 2 or more; use an "
        "elementwise, planar or masked autoregressive bijector at dim 1.",
    ),
    "unknown mask": (
        lambda h: h.module.AffineCoupling(3, mask="third"), ValueError,
        "mask must be one of even, odd, first_half, second_half or a list of 0 and 1, got 'third'.",
    ),
    "unknown activation": (
        lambda h: h.module.AffineCoupling(3, activation="swish"), ValueError,
        "MLP expects activation to be one of elu, gelu, gelu_tanh, leaky_relu, mish, relu, selu, sigmoid, "
        "silu, sin, softplus, tanh, got 'swish'.",
    ),
    "leaky slope": (
        lambda h: h.module.AffineCoupling(3, activation="leaky_relu:1"), ValueError,
        "leaky_relu:SLOPE has a slope of at least 0 and below 1, got 'leaky_relu:1'.",
    ),
    "empty chain": (
        lambda h: h.module.Chain(()), ValueError, "Chain expects at least one bijector.",
    ),
    "chain of different shapes": (
        lambda h: h.module.Chain((h.module.Planar(2), h.module.Planar(3))), ValueError,
        "Chain has parts of different shapes: (*batch, 2) and (*batch, 3).",
    ),
    "chain of different contexts": (
        lambda h: h.module.Chain((h.module.Planar(2, 1), h.module.Planar(2, 2))), ValueError,
        "Chain has parts of different context_dim: 1 and 2.",
    ),
    "base of another shape": (
        lambda h: h.module.Flow(h.module.Planar(2), h.module.StandardNormal(3)), ValueError,
        "Flow has parts of different shapes: (*batch, 2) and (*batch, 3).",
    ),
    "no bijector": (
        lambda h: h.module.Flow("planar", h.module.StandardNormal(3)), TypeError,
        "Flow expects bijector of type Bijector, got str.",
    ),
    "bounds out of order": (
        lambda h: h.module.Uniform(2, 1.0, 0.0), ValueError,
        "Uniform expects low < high, apart by no more than float32 holds, got 1.0 and 0.0.",
    ),
    "eps": (
        lambda h: h.module.BatchNorm(2, eps=0), ValueError,
        "BatchNorm expects eps between 0 and 1, got 0.",
    ),
    "no data": (lambda h: h.fit(X[:0]), ValueError, "fit got no rows of data."),
    "NaN data": (
        lambda h: h.fit(np.array([[0, 0, 0], [0, np.nan, 0]], np.float32)), ValueError,
        "fit got a NaN or an infinity in row 1 of data.",
    ),
    "data of another dtype": (
        lambda h: h.fit(X.astype(np.float64)), TypeError,
        "PlanarFlow has float32 weights but data is float64; convert one of the two, "
        "as with .astype(float32).",
    ),
    "data of another shape": (
        lambda h: h.fit(X[:, :2]), ValueError,
        "PlanarFlow expects data of shape (*batch, 3), got (4, 2).",
    ),
    "one row to split": (
        lambda h: h.fit(X[:1]), ValueError,
        "fit needs at least 2 rows to split off validation data.",
    ),
    "fraction": (
        lambda h: h.fit(X, validation=1.5), ValueError,
        "fit expects validation as a fraction in [0, 1), got 1.5.",
    ),
    "no epochs": (
        lambda h: h.fit(X, num_epochs=0), ValueError,
        "fit expects num_epochs to be an integer of at least 1, got 0.",
    ),
    "unknown type": (
        lambda h: h.module.build({"type": "Nothing"}), ValueError,
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, kind, message = BAD[name]
    said = []
    for module in (torch_flows, jax_flows):
        with pytest.raises(kind) as info:
            call(Half(module))
        said.append(same(str(info.value)))
        if message is not None:
            assert said[-1] == message
    assert said[0] == said[1]


def test_batch_of_one_in_training_mode() -> None:
    message = "BatchNorm needs at least 2 rows in training mode, got 1."
    with pytest.raises(ValueError, match="BatchNorm needs") as in_torch:
        torch_flows.RealNVP(3).train().log_prob(torch.zeros(1, 3))
    flow = jax_flows.RealNVP(3)
    with pytest.raises(ValueError, match="BatchNorm needs") as in_jax:
        flow.log_prob_and_update(flow.init(jax.random.key(0), np.float32), X[:1])
    assert str(in_torch.value) == str(in_jax.value) == message


def test_a_bad_batch_leaves_the_running_averages() -> None:
    x = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    x[3, 1] = np.inf
    norm = torch_flows.BatchNorm(2).train()
    norm(torch.from_numpy(x))
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert torch.equal(norm.running_var, torch.ones(2))
    twin = jax_flows.BatchNorm(2)
    variables = twin.init(jax.random.key(0), np.float32)
    stats = twin.forward_and_update(variables, x)[2]
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_a_taken_name_is_refused() -> None:
    for module in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match="already has a type 'Planar'"):
            module.register(type("Planar", (), {}))

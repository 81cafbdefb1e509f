"""Flows inside aspire, by its own interface; where aspire is installed (``make test-importers``)."""

import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_flows

pytest.importorskip("aspire", reason="needs the environment of make test-importers")

import h5py
from aspire import Aspire
from aspire.flows import get_flow_wrapper
from aspire.samples import Samples

pytestmark = pytest.mark.filterwarnings("ignore")

GROUP = "aspire.flows"
TINY: dict[str, Any] = {"num_layers": 1, "hidden_dims": [8]}
BACKENDS = ["twinflows-torch", "twinflows-jax"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of this checkout."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    given = tomllib.loads(text)["project"]["entry-points"][GROUP]
    found = EntryPoints(EntryPoint(name, value, GROUP) for name, value in given.items())
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found.select(group=group))


def log_likelihood(samples: Any) -> Any:
    return -0.5 * (((samples.x - 0.5) / 0.3) ** 2).sum(-1) - 2 * np.log(0.3 * (2 * np.pi) ** 0.5)


def log_prior(samples: Any) -> Any:
    inside = (abs(samples.x) < 3).all(-1)
    return samples.xp.where(inside, -2 * np.log(6.0), -np.inf)


@pytest.mark.parametrize("backend", BACKENDS)
def test_evidence_by_aspire(backend: str, tmp_path: Path) -> None:
    """Fitted to draws of the posterior, importance sampling gives log Z = -2 log 6."""
    wrapper, xp = get_flow_wrapper(backend)
    assert wrapper.xp is xp
    draws = 0.5 + 0.3 * np.random.default_rng(0).standard_normal((2000, 2))
    run = Aspire(
        log_likelihood=log_likelihood, log_prior=log_prior, dims=2, parameters=["a", "b"],
        prior_bounds={"a": [-3, 3], "b": [-3, 3]}, flow_backend=backend, model="maf", **TINY,
    )  # fmt: skip
    fitted = run.fit(Samples(draws, parameters=["a", "b"], xp=np), n_epochs=8, learning_rate=1e-2)
    assert len(fitted.training_loss) == 8
    found = run.sample_posterior(2000, sampler="importance")
    assert float(found.log_evidence) == pytest.approx(-2 * np.log(6), abs=0.05)
    with h5py.File(tmp_path / "run.h5", "w") as file:
        run.save_flow(file)
    with h5py.File(tmp_path / "run.h5", "r") as file:
        again = wrapper.load(file)
    x = draws[:20]
    expected = np.asarray(run.flow.log_prob(x))
    for name, array in run.flow.model.arrays().items():
        assert np.array_equal(again.model.arrays()[name], array)
    np.testing.assert_allclose(np.asarray(again.log_prob(x)), expected, rtol=1e-4, atol=1e-5)
    assert again.sample(3, xp=np).shape == (3, 2)

    run.flow.save_checkpoint(tmp_path / "flow.safetensors")
    flow = torch_flows.load(tmp_path / "flow.safetensors")
    rows, log_det = (
        torch.tensor(np.array(a))
        for a in run.flow.rescale(run.flow.xp.asarray(x, dtype=run.flow.dtype))
    )
    with torch.no_grad():
        np.testing.assert_allclose(flow.log_prob(rows) + log_det, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_maps_and_densities_belong_together(backend: str, dtype: str | None) -> None:
    import jax

    wrapper, xp = get_flow_wrapper(backend)
    before = jax.config.jax_enable_x64
    try:
        flow = wrapper(3, "maf", dtype=dtype, seed=1, **TINY)
        x, log_q = flow.sample_and_log_prob(50)
        z, log_det = flow.forward(x)
        back, log_det_back = flow.inverse(z)
        tolerance = 1e-4 if dtype is None else 1e-10
        np.testing.assert_allclose(np.asarray(back), np.asarray(x), atol=tolerance)
        np.testing.assert_allclose(np.asarray(log_det), -np.asarray(log_det_back), atol=tolerance)
        normal = -0.5 * (np.asarray(z) ** 2).sum(-1) - 1.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(
            np.asarray(log_q), normal + np.asarray(log_det), atol=10 * tolerance
        )
        assert np.asarray(x).dtype == np.dtype(dtype or "float32")
        assert isinstance(flow.log_prob(x, xp=np), np.ndarray)
        if xp.__name__.startswith("jax"):
            jax.jit(flow.log_prob)(x)
    finally:
        jax.config.update("jax_enable_x64", before)


def test_other_devices_are_refused() -> None:
    wrapper, _ = get_flow_wrapper("twinflows-torch")
    with pytest.raises(ValueError, match="are trained on the CPU here, got device cuda"):
        wrapper(2, device="cuda")

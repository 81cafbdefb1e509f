"""Flows as density estimators of sbi, in its own pipelines; where sbi is installed
(``make test-importers``)."""

import math
import pickle
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

import jax_flows
import torch_flows

pytest.importorskip("sbi", reason="needs the environment of make test-importers")

from sbi.diagnostics import check_sbc, run_sbc
from sbi.inference import NLE, NPE, VIPosterior

from twinflows.inference.sbi import (
    likelihood_estimator,
    posterior_estimator,
    variational_posterior,
)

pytestmark = pytest.mark.filterwarnings("ignore")

VARIANCE = 0.1
"""Of prior and noise: the task gaussian_linear of the sbi benchmark."""
TINY: dict[str, Any] = {"num_layers": 1, "hidden_dims": (8,)}


@pytest.fixture(autouse=True)
def seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # sbi writes logs
    torch.manual_seed(0)


def linear(dim: int, rows: int) -> tuple[MultivariateNormal, Tensor, Tensor]:
    prior = MultivariateNormal(torch.zeros(dim), VARIANCE * torch.eye(dim))
    theta = prior.sample((rows,))
    return prior, theta, theta + math.sqrt(VARIANCE) * torch.randn(rows, dim)


def moons(theta: Tensor) -> Tensor:
    """The task two_moons of the sbi benchmark."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)
    a, b = theta.unbind(1)
    return crescent + torch.stack([-(a + b).abs(), b - a], 1) / math.sqrt(2)


def trained(trainer: Any, theta: Tensor, x: Tensor, **options: Any) -> Any:
    trainer.append_simulations(theta, x).train(**{"max_num_epochs": 2} | options)
    return trainer


def is_calibrated(posterior: Any, theta: Tensor, x: Tensor) -> bool:
    ranks, draws = run_sbc(theta, x, posterior, num_posterior_samples=200, show_progress_bar=False)
    found = check_sbc(ranks, theta, draws, num_posterior_samples=200)
    lowest = float(found["ks_pvals"].min()) * theta.shape[1]
    accuracy = max(float(found[name].max()) for name in ("c2st_ranks", "c2st_dap"))
    return lowest > 0.01 and accuracy < 0.65


def test_gaussian_linear() -> None:
    """Calibrated, and the exact posterior; half of its width is found out."""
    prior, theta, x = linear(3, 3000)
    factory = posterior_estimator("maf", num_layers=2, hidden_dims=(32,))
    trainer = trained(
        NPE(prior, density_estimator=factory, show_progress_bars=False),
        theta, x, max_num_epochs=60, learning_rate=2e-3,
    )  # fmt: skip
    posterior = pickle.loads(pickle.dumps(trainer.build_posterior()))
    _, new, observed = linear(3, 200)
    assert is_calibrated(posterior, new, observed)
    draws = posterior.sample((2000,), x=observed[0], show_progress_bars=False)
    sd = math.sqrt(VARIANCE / 2)
    torch.testing.assert_close(draws.mean(0), observed[0] / 2, atol=0.25 * sd, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.full((3,), sd), atol=0.15 * sd, rtol=0)
    pickle.dumps(trainer)

    narrow = posterior.posterior_estimator.net.bijector.bijectors[0]
    narrow.scale /= 2
    assert not is_calibrated(posterior, new, observed)


@pytest.mark.slow
def test_two_moons() -> None:
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    theta = prior.sample((6000,))
    factory = posterior_estimator("nsf", num_layers=4, hidden_dims=(32, 32))
    trainer = trained(
        NPE(prior, density_estimator=factory, show_progress_bars=False),
        theta, moons(theta), max_num_epochs=100, learning_rate=1e-3,
    )  # fmt: skip
    new = prior.sample((200,))
    assert is_calibrated(trainer.build_posterior(), new, moons(new))


def test_likelihood_goes_to_jax(tmp_path: Any) -> None:
    prior, theta, x = linear(2, 200)
    trainer = trained(NLE(prior, density_estimator=likelihood_estimator("maf", **TINY)), theta, x)
    estimator = pickle.loads(pickle.dumps(trainer))._neural_net
    quick = {"warmup_steps": 5, "thin": 1, "num_chains": 2}
    posterior = trainer.build_posterior(sample_with="mcmc", mcmc_parameters=quick)
    assert len(posterior.sample((5,), x=x[0], show_progress_bars=False)) == 5
    torch_flows.save(estimator.net, tmp_path / "likelihood.safetensors")
    flow, variables = jax_flows.load(tmp_path / "likelihood.safetensors")
    found = flow.log_prob(variables, x.numpy(), theta.numpy())
    with torch.no_grad():
        expected = estimator.log_prob(x, theta)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_shapes_are_those_that_sbi_expects() -> None:
    theta, x = torch.randn(50, 2), torch.randn(50, 3)
    estimator = posterior_estimator(**TINY)(theta, x)
    draws, density = estimator.sample_and_log_prob((4, 5), x[:7])
    assert draws.shape == (4, 5, 7, 2)
    assert estimator.sample((4,), x[:7]).shape == (4, 7, 2)
    draws, density = draws.flatten(0, 1), density.flatten(0, 1)
    expected = estimator.log_prob(draws, x[:7])
    torch.testing.assert_close(density, expected, rtol=1e-4, atol=1e-4)
    each = estimator.log_prob(draws, x[:7].expand(20, 7, 3))
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(estimator.log_prob(draws[:, :1], x[:7]).shape, expected.shape)
    torch.testing.assert_close(estimator.loss(theta, x), -estimator.log_prob(theta, x)[0])
    with pytest.raises(ValueError, match="Shape of condition"):
        estimator.log_prob(theta, x[:, :2])
    latents = estimator.inverse_transform(theta, x)
    assert latents.shape == (1, 50, 2)


class Summary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean((-1, -2)))


@pytest.mark.parametrize("kind", ["outside", "inside", "flow"])
def test_embedding_networks_and_flows_of_ones_own(kind: str, tmp_path: Any) -> None:
    theta = torch.randn(60, 2)
    x = 100 * torch.randn(60, 2, 4, 4) if kind == "outside" else 100 * torch.randn(60, 3)
    factory = {
        "outside": lambda: posterior_estimator(embedding_net=Summary(), **TINY),
        "inside": lambda: posterior_estimator(embedding_net=torch_flows.MLP(3, 5, (4,)), **TINY),
        "flow": lambda: posterior_estimator(torch_flows.MAF(2, (4,), 1, context_dim=3)),
    }[kind]()
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    trainer = trained(NPE(prior, density_estimator=factory), theta, x)
    estimator = trainer._neural_net
    assert estimator.net.bijector.context_dim == (3 if kind == "flow" else 5)
    assert isinstance(estimator.embedding_net, nn.Module)
    if kind == "outside":
        before = dict(factory.embedding_net.named_parameters())
        after = dict(estimator.embedding_net[1].named_parameters())
        assert all(not torch.equal(before[name], after[name]) for name in before)
    else:
        torch_flows.save(estimator.net, tmp_path / "posterior.safetensors")
        flow, variables = jax_flows.load(tmp_path / "posterior.safetensors")
        found = flow.log_prob(variables, theta.numpy(), x.numpy())
        with torch.no_grad():
            expected = estimator.log_prob(theta, x)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert pickle.loads(pickle.dumps(factory))(theta, x).input_shape == (2,)


@pytest.mark.parametrize("inside", [True, False])
def test_elements_of_a_set_have_one_scale(inside: bool) -> None:
    """Their order does not matter, and flags that are all the same do not make padding of them."""
    theta, x = torch.randn(60, 2), torch.randn(60, 3, 2) * torch.arange(1, 4)[:, None]
    x[..., 0] = 1
    net = torch_flows.DeepSet(6, 3, element_dim=2, hidden_dims=(8,), padded=True)
    own = torch_flows.MAF(2, (4,), 1, context_dim=3)
    own = torch_flows.Flow(own.bijector, own.base, net)
    factory = posterior_estimator(embedding_net=net, **TINY) if inside else posterior_estimator(own)
    estimator = factory(theta, x.flatten(1))
    given = [a.flatten(1) for a in (x, x.flip(1), x + torch.tensor([0.0, 1.0]))]
    embedded, turned, moved = (estimator.net.embed(a) for a in given)
    torch.testing.assert_close(embedded, turned)
    assert (embedded - moved).abs().max() > 1e-3


def test_constant_entries() -> None:
    theta, x = torch.randn(60, 2), torch.randn(60, 2)
    constant = torch.cat([x, torch.full((60, 1), 1e6)], 1)
    estimator = posterior_estimator(**TINY)(theta, constant)
    assert torch.isfinite(estimator.log_prob(theta, constant)).all()
    for factory, given in (
        (posterior_estimator, (constant, x)),
        (likelihood_estimator, (x, constant)),
    ):
        with pytest.raises(ValueError, match=r"column 2 of the data is constant"):
            factory(**TINY)(*given)
    with pytest.raises(ValueError, match=r"data are expected as vectors, got \(2, 1\)"):
        likelihood_estimator(**TINY)(theta, x[..., None])
    with pytest.raises(ValueError, match=r"events \(2,\) with a context of 2, got \(3,\) and 2"):
        posterior_estimator(torch_flows.MAF(3, (4,), 1, context_dim=2))(theta, x)


def test_missing_trials_of_an_embedding_do_not_count() -> None:
    theta, x = torch.randn(60, 2), torch.randn(60, 5, 3)
    x[:, 4] = torch.nan

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nanmean(x, -2)

    estimator = posterior_estimator(embedding_net=Mean(), **TINY)(theta, x)
    assert torch.isfinite(estimator.log_prob(theta, x)).all()


@pytest.mark.parametrize("model", ["nsf", "maf", "realnvp"])
def test_sequential_rounds(model: str) -> None:
    """NPE-C: the second round is drawn from the posterior of the first."""
    prior = Independent(Uniform(-2 * torch.ones(2), 2 * torch.ones(2)), 1)
    factory = posterior_estimator(model, num_layers=2, hidden_dims=(8,))
    trainer = NPE(prior, density_estimator=factory, show_progress_bars=False)
    proposal: Any = prior
    observed = torch.tensor([0.5, -0.5])
    for _ in range(2):
        theta = proposal.sample((300,))
        x = theta + 0.2 * torch.randn(300, 2)
        trainer.append_simulations(theta, x, proposal=proposal)
        trainer.train(max_num_epochs=30, learning_rate=5e-3)
        proposal = trainer.build_posterior().set_default_x(observed)
    draws = proposal.sample((500,), show_progress_bars=False)
    assert (draws.mean(0) - observed).abs().max() < 0.15
    trainer.train(max_num_epochs=1, retrain_from_scratch=True)


def potential(theta: Tensor, x_o: Tensor) -> Tensor:
    return Normal(x_o[0], 0.3).log_prob(theta).sum(-1)


@pytest.mark.parametrize("method", ["rKL", "fKL", "IW", "alpha"])
def test_variational_posterior(method: str) -> None:
    """Of a Gaussian known by its density, inside the bounds of its prior."""
    prior = Independent(Uniform(-2 * torch.ones(2), 2 * torch.ones(2)), 1)
    family = variational_posterior("maf", **TINY)
    posterior = VIPosterior(potential, prior, q=family, vi_method=method)
    posterior.set_default_x(torch.tensor([[0.5, -0.5]]))
    posterior.train(
        max_num_iters=300,
        min_num_iters=300,
        learning_rate=2e-2,
        quality_control=False,
        show_progress_bar=False,
    )
    draws = pickle.loads(pickle.dumps(posterior)).sample((1000,))
    assert (draws.mean(0) - torch.tensor([0.5, -0.5])).abs().max() < 0.1
    assert (draws.std(0) - 0.3).abs().max() < 0.1


def test_the_page() -> None:
    """Every block of docs/sbi.md; NUTS against the exact posteriors."""
    pytest.importorskip("blackjax")
    page = Path(__file__).parent.parent / "docs" / "sbi.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    with jax.enable_x64(False):
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)
    assert names["calibration"]["ks_pvals"].min() > 0.01
    assert abs(names["in_jax"] - names["in_torch"]).max() < 1e-4
    for draws, mean, variance in (
        ("chain", "exact", "variance"),
        ("mu", "mu_exact", "mu_variance"),
    ):
        sd = names[variance] ** 0.5
        assert (abs(names[draws].mean(0) - names[mean]) < 0.25 * sd).all()
        assert (abs(names[draws].std(0) - sd) < 0.2 * sd).all()

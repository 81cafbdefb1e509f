"""docs/hierarchical.md: its posteriors, its evidence and its calibration against exact ones."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyro
import pytest
import torch
from scipy.stats import multivariate_normal

from twinflows import inference

PAGE = Path(__file__).parent.parent / "docs" / "hierarchical.md"


@pytest.mark.slow
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    names: dict[str, Any] = {}
    with jax.enable_x64(False), torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    mean, sd = names["exact_mean"], names["exact_variance"] ** 0.5
    draws = names["draws"]["mu"]
    assert abs(draws.mean() - mean) < 0.2 * sd
    assert abs(draws.std() - sd) < 0.2 * sd
    assert abs(names["corrected_mean"] - mean) < 0.2 * sd
    assert names["ess"] > 800
    assert np.min(names["calibration"].pvalue) > 0.01
    weighted = inference.effective_sample_size(names["log_w"])
    assert abs(names["pyro_mean"] - mean) < 5 * sd / weighted**0.5
    groups = names["groups"][:, 0].numpy()
    exact = multivariate_normal(np.zeros(6), 0.5 * np.eye(6) + 1).logpdf(groups)
    assert abs(names["log_z"].value - exact) < 5 * names["log_z"].standard_error
    assert {"weights.png", "calibration.png", "latents.png"} <= {p.name for p in tmp_path.iterdir()}

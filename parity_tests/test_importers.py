"""What importers made of models of other libraries, without these libraries: golden files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

import jax_flows
import torch_flows
from flow_bridge import ConversionError
from flow_bridge.importers import Imported, import_state, parts
from flow_bridge.importers.comparison import errors
from parity_tests.peers import GOLDEN, LIBRARIES
from twinflows import check_parity

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")

FILES = sorted(GOLDEN.glob("*.npz"), key=lambda path: path.name)
IN_JAX = (
    "distrax_spline",
    "flowjax_bnaf",
    "flowjax_masked_spline",
    "freia_all_in_one",
    "nflows_rq_coupling_context",
    "nflows_linear",
    "nflows_normalization",
    "numpyro_iaf",
    "normflows_maf",
    "normflows_planar",
    "pyro_conditional",
    "sbi_maf_embedded",
    "sbi_nsf_one_dimension",
    "zuko_maf_adjacency",
    "zuko_maf_residual",
    "zuko_naf",
    "zuko_nice_spline",
)
"""What takes a second to compile: one of each kind; the parity suite compares the halves."""


WITH_PARITY = ("distrax_affine", "flowjax_scaled")
"""The same for ``check_parity``: what is quick, and what becomes singular far out."""


class Golden(NamedTuple):
    """A golden file.

    Attributes:
        imported: what the importer made of the model.
        inverse: whether its rows go from latent to data, the only way that the peer has.
        limits: of the errors of z and log|det|.
    """

    imported: Imported
    x: np.ndarray
    context: np.ndarray | None
    z: np.ndarray
    log_det: np.ndarray
    limits: np.ndarray
    inverse: bool

    def in_torch(self, flow: Any) -> None:
        """Fail unless a flow computes what the peer computed."""
        given = [torch.from_numpy(array) for array in (self.x, self.context) if array is not None]
        with torch.no_grad():
            self.check((flow.inverse if self.inverse else flow.forward)(*given))

    def in_jax(self, flow: Any, variables: Any) -> None:
        """Fail unless a flow computes what the peer computed."""
        step = flow.inverse if self.inverse else flow.forward
        self.check(jax.jit(step)(variables, self.x, self.context))

    def check(self, found: Any) -> None:
        pair = tuple(np.asarray(value) for value in found)
        assert (errors(pair, (self.z, self.log_det)).max(1) <= self.limits).all()


def golden(path: Path) -> Golden:
    with np.load(path) as file:
        contents = {name: file[name] for name in file.files}
    architecture = json.loads(str(contents.pop("architecture")))
    arrays = safetensors.numpy.load(contents.pop("arrays").tobytes())
    source, nothing = str(contents.pop("source")), parts.Reading([], parts.Part({}), None)
    imported = Imported(architecture, arrays, source, (), "float64", nothing)
    if "state" in contents:  # the peer's own arrays
        imported = import_state(**json.loads(str(contents.pop("state"))), state=arrays)
        assert imported.architecture == architecture
    return Golden(imported, context=contents.pop("context", None), **contents)


def golden_files(quick: Iterable[str]) -> Any:
    """All golden files, of which only some are quick."""
    given = [
        pytest.param(path, marks=[] if path.stem in quick else pytest.mark.slow, id=path.stem)
        for path in FILES
    ]
    return pytest.mark.parametrize("path", given)


def test_every_peer_has_a_golden_file() -> None:
    assert set(LIBRARIES) == {path.stem.split("_")[0] for path in FILES}


@golden_files(path.stem for path in FILES)
def test_golden_file(path: Path) -> None:
    """The import computes what the peer computed."""
    model = golden(path)
    model.in_torch(torch_flows.import_flow(model.imported, dtype="float64"))


@golden_files(IN_JAX)
def test_golden_file_in_the_other_half(path: Path, tmp_path: Path) -> None:
    """So do the import in JAX, and what one half has saved and the other loaded."""
    model = golden(path)
    flow = torch_flows.import_flow(model.imported, dtype="float64")
    twin, variables = jax_flows.import_flow(model.imported, dtype="float64")
    torch_flows.save(flow, tmp_path / "torch")
    jax_flows.save(twin, variables, tmp_path / "jax")
    loaded, loaded_variables = jax_flows.load(tmp_path / "torch")
    assert loaded == twin
    jax.tree.map(np.testing.assert_array_equal, loaded_variables, variables)
    model.in_jax(loaded, loaded_variables)
    model.in_torch(torch_flows.load(tmp_path / "jax"))


@golden_files(WITH_PARITY)
def test_parity_of_golden_file(path: Path) -> None:
    model = golden(path)
    flow = torch_flows.import_flow(model.imported, dtype="float64")
    x = model.x
    if model.inverse:
        with torch.no_grad():
            given = [torch.from_numpy(a) for a in (x, model.context) if a is not None]
            x = flow.inverse(*given)[0].numpy()
    report = check_parity(flow, x, context=model.context)
    assert report.passed, str(report)


@pytest.mark.parametrize("half", [torch_flows, jax_flows])
def test_a_difference_is_found_and_named(half) -> None:
    """Of a model of two layers, the second of which may be another one."""
    scale = np.array([2.0, 0.5])

    def imported(slope: float) -> Imported:
        def first(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            return x[:, ::-1], np.zeros(len(x))

        def second(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            return slope * x / scale, np.full(len(x), 2 * np.log(slope))

        def both(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            return second(first(x, None)[0], None)

        layers = [
            parts.Layer("turn", [parts.permutation([1, 0])], first),
            parts.Layer("stretch", [parts.standardize(0 * scale, scale, "a test")], second),
        ]
        reading = parts.Reading(layers, parts.part("StandardNormal", dim=2), both)
        flow = parts.flow(reading)
        return Imported(flow.architecture, flow.arrays, "a test", ("a note",), "float32", reading)

    with pytest.warns(UserWarning, match="a test: a note"):
        half.import_flow(imported(1.0))
    with pytest.raises(ConversionError) as error:
        half.import_flow(imported(1 + 1e-9))
    assert "the import of a test differs from it: z of a row is" in str(error.value)
    assert str(error.value).endswith("The first layer that differs is stretch.")
    with pytest.warns(UserWarning, match="a test: a note"):
        half.import_flow(imported(1 + 1e-9), check=False)

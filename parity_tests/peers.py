"""Models of other libraries, with random weights, for the tests of importers.

``python -m parity_tests.peers`` writes the golden files from them, in an environment that has the
libraries (``make test-importers`` makes one).
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from flow_bridge import importers

GOLDEN = Path(__file__).parent / "golden" / "importers"
GOLDEN_ROWS = 8


class Peer(NamedTuple):
    """A model of another library.

    Attributes:
        make: gives the model, in the library's own float32 or in float64.
        hints: that it is imported with.
        context_dim: width of the context.
        golden: whether a golden file is written of it.
    """

    make: Callable[[], Any]
    context_dim: int = 0
    hints: Mapping[str, Any] = MappingProxyType({})
    golden: bool = True


def zuko() -> dict[str, Peer]:
    import torch
    from zuko import flows

    adjacency = torch.tensor(
        [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool
    )
    return {
        "maf": Peer(lambda: flows.MAF(4, 0, transforms=2, hidden_features=(6, 5))),
        "maf_context": Peer(
            lambda: flows.MAF(3, 2, transforms=2, hidden_features=(5, 5), activation=torch.nn.ELU),
            2,
        ),
        "maf_adjacency": Peer(
            lambda: flows.MAF(4, transforms=2, hidden_features=(6, 5), adjacency=adjacency)
        ),
        "maf_passes": Peer(
            lambda: flows.MAF(5, 2, transforms=2, hidden_features=(6,), passes=2), 2
        ),
        "nice": Peer(lambda: flows.NICE(5, 2, transforms=3, hidden_features=(6, 5)), 2),
        "nice_randmask": Peer(
            lambda: flows.RealNVP(3, 0, transforms=3, hidden_features=(6,), randmask=True)
        ),
    }


LIBRARIES: dict[str, Callable[[], dict[str, Peer]]] = {"zuko": zuko}


def perturbed(module: Any, seed: int = 0) -> Any:
    """A torch module with noise on all its weights, in evaluation mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.3 * noise).to(parameter.dtype))
    return module.eval()


def rows(dim: int, context_dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows, of which the first are wide, and contexts."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(GOLDEN_ROWS, dim)) * 1.3
    x[:3] *= 4
    return x, generator.normal(size=(GOLDEN_ROWS, context_dim)) if context_dim else None


def golden_files() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The name and the arrays of each golden file."""
    import torch

    for library, make in LIBRARIES.items():
        if len(sys.argv) > 1 and library not in sys.argv[1:]:
            continue
        for name, peer in make().items():
            torch.manual_seed(0)
            model = perturbed(peer.make())
            imported = importers.import_flow(model, **peer.hints)
            x, context = rows(imported.reading.base.architecture["dim"], peer.context_dim)
            z, log_det = imported.reading.run(x, context)
            contents = {f"array.{key}": value for key, value in imported.arrays.items()}
            contents |= {"x": x, "z": z, "log_det": log_det}
            contents |= {} if context is None else {"context": context}
            contents["architecture"] = np.array(json.dumps(imported.architecture))
            contents["source"] = np.array(imported.source)
            yield f"{library}_{name}", contents


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, contents in golden_files():
        np.savez_compressed(GOLDEN / f"{name}.npz", **contents)
        print(name, (GOLDEN / f"{name}.npz").stat().st_size)

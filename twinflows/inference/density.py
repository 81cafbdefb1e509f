"""Flows as estimators of scikit-learn: the density of a table, and of one table given another."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from flow_bridge.architecture import architecture
from flow_bridge.checkpoint import write_checkpoint
from flow_bridge.errors import NonFiniteError
from flow_bridge.standardization import location_and_scale
from twinflows.inference.cells import Cells, check_columns
from twinflows.inference.predictive import model_anomaly_scores, model_quantiles
from twinflows.sides.bounds import check_bounds
from twinflows.sides.models import (
    describe,
    draw,
    expected_shapes,
    in_blocks,
    new_model,
    rebuild,
    scaled,
    weight_dtype,
)

MAX_SEED = 2**31 - 1


class _Estimator(BaseEstimator):
    """What both estimators share: arguments, training, and pickles of plain data."""

    def __init__(
        self,
        model: str = "nsf",
        backend: str | None = None,
        *,
        model_options: Mapping[str, Any] | None = None,
        bounds: Any = None,
        heavy_tails: bool = False,
        num_epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        validation: float = 0.1,
        patience: int | None = 10,
        dtype: str = "float32",
        random_state: Any = None,
        integers: Any = None,
        categories: Any = None,
    ) -> None:
        self.model = model
        self.backend = backend
        self.model_options = model_options
        self.bounds = bounds
        self.heavy_tails = heavy_tails
        self.num_epochs = num_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation = validation
        self.patience = patience
        self.dtype = dtype
        self.random_state = random_state
        self.integers = integers
        self.categories = categories

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the flow to a checkpoint, which either half and the command line read."""
        check_is_fitted(self)
        flow = architecture(self.flow_.flow)
        write_checkpoint(path, flow, self.flow_.arrays(), expected_shapes)

    def _fit(
        self, x: np.ndarray, names: list[str] | None, context: Any, context_names: Any
    ) -> None:
        whole = check_columns("integers", self.integers, names, x.shape[1])
        kinds = check_columns("categories", self.categories, names, x.shape[1])
        bounds = check_bounds(self.bounds, names, x.shape[1])
        cells = Cells.learned(x, whole, kinds, bounds, names)
        seed = int(check_random_state(self.random_state).randint(MAX_SEED))
        x = cells.spread(x, self.dtype, names, np.random.default_rng(seed))
        location_and_scale(x, self.dtype, "data", names)
        described = describe(
            self.model,
            self.backend,
            x.shape[1:],
            0 if context is None else context.shape[1],
            self.model_options or {},
            "StudentT" if self.heavy_tails else None,
            names,
            context_names,
        )
        model = new_model(described, self.backend, self.dtype, seed)
        model = scaled(model, x, context, self.dtype, self.heavy_tails, cells.ends)
        history = model.fit(
            x.astype(self.dtype),
            None if context is None else context.astype(self.dtype),
            validation=self.validation,
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            patience=self.patience if self.validation else None,
            seed=seed,
            progress=False,
        )
        if history.validation_loss and history.best_epoch is None:
            raise NonFiniteError(
                "no validation loss is a number: a lower learning rate often helps."
            )
        self.flow_, self.history_, self.cells_ = model, history, cells

    def _rows(self, x: Any, reset: bool = False) -> np.ndarray:
        """Rows of numbers, with the names of columns that they were fitted with."""
        given = validate_data(
            self, x, reset=reset, dtype=np.float64, ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )  # fmt: skip
        return refuse_missing(given, "data", getattr(self, "feature_names_in_", None))

    def _log_prob(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        return self._log_cells(x, context).astype(weight_dtype(self.flow_))

    def _log_cells(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        return self.cells_.log_prob(partial(in_blocks, self.flow_.log_prob), x, context)

    def _generator(self, random_state: Any) -> np.random.Generator:
        given = self.random_state if random_state is None else random_state
        return np.random.default_rng(int(check_random_state(given).randint(MAX_SEED)))

    def __getstate__(self) -> dict[str, Any]:
        """Plain data: the architecture and numpy arrays, in place of modules of a framework."""
        state = dict(super().__getstate__())
        if (model := state.get("flow_")) is not None:
            arrays = {name: np.array(array) for name, array in model.arrays().items()}
            state["flow_"] = (model.backend, architecture(model.flow), arrays, weight_dtype(model))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(stored := state.get("flow_"), tuple):
            state = state | {"flow_": rebuild(*stored)}
        super().__setstate__(state)


class FlowDensity(DensityMixin, _Estimator):
    """The density of the rows of a table, by a flow fitted with maximum likelihood.

    An estimator of scikit-learn: it works in pipelines, cross-validation and grid search, ``score`` being
    the mean log-density of held-out rows. Columns are standardised inside, so that densities and samples
    are in the units of the data.

    Args:
        model: the name of a model, in any case: ``"nsf"``, ``"maf"``, ``"realnvp"``, ...
        backend: ``"torch"`` or ``"jax"``; by default the one that is installed.
        model_options: arguments of the model, such as ``{"num_layers": 3}``.
        bounds: of columns that have some, by name or position: ``{"age": (0, None), "share": (0, 1)}``. A
            column above 0 is modelled by its logarithm, one between two bounds by its logit; no sample
            leaves the bounds.
        heavy_tails: a Student t base of 4 degrees of freedom (``{"base.df": ...}`` sets them), and
            scaling by median and interquartile range.
        num_epochs, batch_size, learning_rate, validation, patience: as of ``fit``.
        dtype: of weights and results, ``"float32"`` or ``"float64"``, which JAX is then switched to.
        random_state: decides the weights, split and batches, and ``sample``.
        integers: columns of whole numbers, by name or position. The flow is fitted to rows drawn uniformly
            from their cells [n, n + 1); ``score_samples`` is the log of its integral over the cell, a
            probability in those columns and a density in the others, by a rule of 16 nodes, for several
            such columns of 64; samples are whole. Bounds of such a column are numbers that occur.
            ``save`` writes the flow, of dequantised rows.
        categories: columns of categories, as numbers, by name or position. Each category is a cell like those
            of whole numbers, in the order of their values, between bounds: its probability is an integral
            and no bound on one, the probabilities of all are 1 in sum, and one that ``fit`` did not meet
            has none. Flows of splines can follow the steps between cells, affine ones cannot.

    Attributes:
        flow_: the flow and its weights; ``flow_.flow`` is that of ``torch_flows`` or ``jax_flows``.
        history_: the losses.
        n_features_in_, feature_names_in_: as of every estimator.

    Raises:
        ValueError: for missing values, infinities, constant columns, rows outside the bounds, fractions in
            columns of whole numbers, and bounds of categories.

    Examples:
        >>> import numpy as np
        >>> from twinflows.inference import FlowDensity
        >>> x = np.random.default_rng(0).exponential(2.0, (200, 1))
        >>> options = {"num_layers": 1, "hidden_dims": [4]}
        >>> density = FlowDensity("maf", model_options=options, bounds=[(0, None)], num_epochs=2)
        >>> bool(density.fit(x).sample(50).min() > 0)
        True
    """

    def fit(self, X: Any, y: Any = None) -> "FlowDensity":
        """Fit the flow to rows X, shape ``(rows, columns)``; y is ignored."""
        x = self._rows(X, reset=True)
        names = getattr(self, "feature_names_in_", None)
        self._fit(x, None if names is None else [str(name) for name in names], None, None)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """The log-density of every row in nats, -inf outside the bounds."""
        check_is_fitted(self)
        return self._log_prob(self._rows(X), None)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean log-density of the rows in nats; y is ignored."""
        return float(self.score_samples(X).mean(dtype=np.float64))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Rows drawn from the density, the same in both halves for the same weights."""
        check_is_fitted(self)
        drawn = draw(self.flow_, n_samples, self._generator(random_state), None)
        return self.cells_.whole(drawn).astype(weight_dtype(self.flow_))

    def anomaly_scores(self, X: Any, num_draws: int = 1000, random_state: Any = None) -> np.ndarray:
        """How much of the density lies above that of each row: 0 at a mode, 1 far out.

        Of data like those of ``fit`` they are uniform: above 0.99 lies one row in a hundred. It is free
        of units, as the log-density is not.
        """
        check_is_fitted(self)
        generator = self._generator(random_state)
        given = num_draws, generator, self._log_cells, self.cells_.whole
        return model_anomaly_scores(self.flow_, self._rows(X), None, *given)


class ConditionalFlowDensity(_Estimator):
    """The density of y given X, by a conditional flow: a regression that knows its uncertainty.

    An estimator of scikit-learn; ``score`` is the mean log-density of held-out y, and ``predict`` gives
    medians. Arguments and attributes are those of ``FlowDensity``; ``bounds``, ``integers`` and
    ``categories`` are of the columns of y, by position. Categories have no quantiles.

    Examples:
        >>> import numpy as np
        >>> from twinflows.inference import ConditionalFlowDensity
        >>> x = np.random.default_rng(0).normal(size=(200, 1))
        >>> options = {"num_layers": 1, "hidden_dims": [4]}
        >>> density = ConditionalFlowDensity("maf", model_options=options, num_epochs=2)
        >>> density.fit(x, 2 * x[:, 0] + 1).quantiles(x, [0.05, 0.95]).shape
        (2, 200)
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    def fit(self, X: Any, y: Any) -> "ConditionalFlowDensity":
        """Fit the flow to y ``(rows,)`` or ``(rows, targets)`` given X ``(rows, columns)``."""
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None."
            )
        context = self._rows(X, reset=True)
        names = getattr(self, "feature_names_in_", None)
        targets = self._targets(y, len(context))
        self.y_ndim_ = np.ndim(y)
        location_and_scale(context, self.dtype, "context", names)
        context_names = None if names is None else [str(name) for name in names]
        self._fit(targets, None, context, context_names)
        return self

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """The log-density of every y given its row of X, in nats."""
        check_is_fitted(self)
        context = self._rows(X)
        return self._log_prob(self._targets(y, len(context)), context)

    def score(self, X: Any, y: Any) -> float:
        """The mean log-density of y given X in nats."""
        return float(self.log_prob(X, y).mean(dtype=np.float64))

    def sample(self, X: Any, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws for every row of X: ``(n_samples, rows)``, or ``(n_samples, rows, targets)``."""
        check_is_fitted(self)
        context = self._rows(X)
        repeated = np.tile(context, (n_samples, 1))
        drawn = draw(self.flow_, len(repeated), self._generator(random_state), repeated)
        return self._shaped(drawn.reshape(n_samples, len(context), -1))

    def quantiles(self, X: Any, levels: Sequence[float], num_draws: int = 1000) -> np.ndarray:
        """Quantiles of y for every row of X: ``(levels, rows)``, or ``(levels, rows, targets)``.

        Of one target with a normal base they are exact: the quantiles of the latent, carried over.
        Otherwise they are those of ``num_draws`` draws, for each target on its own.
        """
        check_is_fitted(self)
        if self.cells_.categories:
            raise ValueError("categories have no order and no quantiles: see log_prob and sample.")
        return self._shaped(model_quantiles(self.flow_, levels, self._rows(X), num_draws))

    def predict(self, X: Any) -> np.ndarray:
        """The median of y for every row of X."""
        return self.quantiles(X, [0.5])[0]

    def anomaly_scores(
        self, X: Any, y: Any, num_draws: int = 1000, random_state: Any = None
    ) -> np.ndarray:
        """How much of the density given its row of X lies above that of each y, as in ``FlowDensity``."""
        check_is_fitted(self)
        context = self._rows(X)
        targets = self._targets(y, len(context))
        generator = self._generator(random_state)
        given = num_draws, generator, self._log_cells, self.cells_.whole
        return model_anomaly_scores(self.flow_, targets, context, *given)

    def _targets(self, y: Any, rows: int) -> np.ndarray:
        given = check_array(
            y, dtype=np.float64, ensure_2d=False, ensure_all_finite=False, input_name="y"
        )
        if len(given) != rows:
            raise ValueError(f"X has {rows} rows, y {len(given)}: inconsistent numbers of samples.")
        return refuse_missing(given.reshape(rows, -1), "targets y", None)

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        values = self.cells_.whole(values).astype(weight_dtype(self.flow_))
        return values[..., 0] if self.y_ndim_ == 1 else values


def refuse_missing(x: np.ndarray, what: str, names: Sequence[str] | None) -> np.ndarray:
    """x, or ``ValueError`` that names the column with a missing value or an infinity."""
    if not (bad := ~np.isfinite(x).all(0)).any():
        return x
    index = int(np.argmax(bad))
    label = index if names is None else repr(str(names[index]))
    kind = "a missing value (NaN)" if np.isnan(x[:, index]).any() else "an infinity (inf)"
    raise ValueError(
        f"column {label} of the {what} holds {kind}: leave such rows out or fill them in first."
    )

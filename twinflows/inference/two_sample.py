"""Two-sample tests by classifiers of scikit-learn."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from flow_bridge import checks, optional
from twinflows.inference import arrays


class C2ST(NamedTuple):
    """The accuracy, and for each row of x, then of y, the probability it was given to be of y."""

    accuracy: float
    probabilities: np.ndarray


class LocalC2ST(NamedTuple):
    """The statistic and the p-value for each observation, and the statistics under the null."""

    statistic: Any
    pvalue: Any
    null_statistics: np.ndarray


def c2st(x: Any, y: Any, num_folds: int = 5, classifier: Any = None, seed: int = 0) -> C2ST:
    """Classifier two-sample test: how well a classifier tells x from y, on rows that it has not seen.

    1/2 is chance, 1 is certainty (1610.06545). By default it is the measure of sbibm (2101.04653): two
    hidden layers of 10 dim units, both samples in units of the mean and standard deviation of x,
    averaged over folds.

    Args:
        x: draws of the reference, shape ``(rows, dim)``.
        y: as many draws of the other distribution.
        num_folds: of cross-validation.
        classifier: another one of scikit-learn, with ``predict_proba``.
        seed: of the folds and of the network, an integer.

    Raises:
        ValueError: for a NaN or an infinity, shapes that differ, fewer rows than 10 or than folds.
        ImportError: without scikit-learn.
    """
    owner = "c2st"
    checks.non_negative_int(owner, seed=seed)
    num_folds = arrays.count(owner, "num_folds", num_folds)
    if num_folds < 2:
        raise ValueError(f"{owner} expects num_folds to be at least 2, got {num_folds}.")
    x, y = (
        arrays.matrix(owner, name, arrays.rows(owner, name, values, max(10, num_folds)))
        for name, values in (("x", x), ("y", y))
    )
    arrays.same_shape(owner, "x", x, "y", y)
    selection = optional.host(owner, "sklearn.model_selection", "scikit-learn", "inference")
    features = np.concatenate([_scaled(x, x), _scaled(y, x)])
    labels = np.repeat([0, 1], len(x))
    model = _network(owner, x.shape[1], seed) if classifier is None else classifier
    folds = selection.KFold(num_folds, shuffle=True, random_state=seed)
    probabilities = selection.cross_val_predict(
        model, features, labels, cv=folds, method="predict_proba"
    )[:, 1]
    return C2ST(float(((probabilities > 0.5) == labels).mean()), probabilities)


def local_c2st(
    z: Any,
    context: Any,
    observation: Any,
    num_null: int = 100,
    num_eval: int = 1000,
    classifier: Any = None,
    seed: int = 0,
) -> LocalC2ST:
    """L-C2ST: is the conditional flow right at one observation? No draws of the posterior are needed.

    A classifier learns to tell (z, x), with z = flow.forward(θ, x)[0] of pairs (θ, x) of the model, from
    (noise, x). The statistic is the mean of (P(latent | z, x_o) - 1/2)² over noise z; its distribution
    where the flow is right comes from classifiers of noise against noise (2306.03580).

    Args:
        z: latents of held-out parameters, by a flow whose base is ``StandardNormal``, shape ``(N, dim)``.
        context: what each was conditioned on, shape ``(N, context_dim)``.
        observation: where to look, shape ``(context_dim,)``, or ``(M, context_dim)`` for several with
            the same classifiers.
        num_null: how many classifiers to fit under the null; the p-value is at least 1 / (1 + num_null).
        num_eval: how many noise vectors the statistic is averaged over.
        classifier: one of scikit-learn with ``predict_proba``; by default as in ``c2st``.
        seed: of noise and networks, an integer.

    Returns:
        Statistic and p-value, numbers or of shape ``(M,)``, and the null's statistics, of shape
        ``(num_null,)`` or ``(num_null, M)``.

    Raises:
        ValueError: for a NaN or an infinity, shapes that do not match, and fewer than 10 rows.
        ImportError: without scikit-learn.
    """
    owner = "local_c2st"
    num_null = arrays.count(owner, "num_null", num_null)
    num_eval = arrays.count(owner, "num_eval", num_eval)
    z, context = (
        arrays.matrix(owner, name, arrays.rows(owner, name, values, 10))
        for name, values in (("z", z), ("context", context))
    )
    if len(z) != len(context):
        raise ValueError(f"{owner} got {len(z)} rows in z, but {len(context)} in context.")
    seen = arrays.finite(owner, "observation", observation)
    if seen.ndim not in (1, 2) or seen.shape[-1] != context.shape[1]:
        raise ValueError(
            f"{owner} expects observation of shape ({context.shape[1]},) or (M, {context.shape[1]}), "
            f"got {seen.shape}."
        )
    base = optional.host(owner, "sklearn.base", "scikit-learn", "inference")
    generator = arrays.generator(owner, seed)
    given, at = _scaled(context, context), _scaled(np.atleast_2d(seen), context)
    noise = generator.standard_normal((num_eval, z.shape[1]))
    where = [np.hstack([noise, np.broadcast_to(row, (num_eval, len(row)))]) for row in at]
    labels = np.repeat([0, 1], len(z))
    width = z.shape[1] + context.shape[1]
    template = _network(owner, width, seed) if classifier is None else classifier

    def statistics() -> Iterator[np.ndarray]:
        for trial in range(num_null + 1):
            second = generator.standard_normal(z.shape) if trial else z
            first = generator.standard_normal(z.shape)
            features = np.vstack([np.hstack([part, given]) for part in (first, second)])
            model = base.clone(template).fit(features, labels)
            yield np.array([((model.predict_proba(w)[:, 1] - 0.5) ** 2).mean() for w in where])

    found, *under_null = statistics()
    null = np.array(under_null)
    pvalue = (1 + (null >= found).sum(0)) / (1 + num_null)
    if seen.ndim == 1:
        return LocalC2ST(found[0].item(), pvalue[0].item(), null[:, 0])
    return LocalC2ST(found, pvalue, null)


def _scaled(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    scale = reference.std(0, ddof=1)
    return (values - reference.mean(0)) / np.where(scale > 0, scale, 1)


def _network(owner: str, dim: int, seed: int) -> Any:
    networks = optional.host(owner, "sklearn.neural_network", "scikit-learn", "inference")
    return networks.MLPClassifier((10 * dim, 10 * dim), max_iter=10000, random_state=seed)

"""sbi (0.23 to 0.27): the density estimators that its trainers return, on nflows and on zuko.

Reference: Tejero-Cantero et al. (2020), sbi: a toolkit for simulation-based inference,
arXiv:2007.09114.
"""

from dataclasses import replace
from typing import Any

from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import nflows, parts, zuko
from flow_bridge.importers.parts import Reading
from flow_bridge.importers.reading import Run, expect, field, float64_copy, in_numpy, kind

NETWORK = "sbi's embedding network"


def read(estimator: Any, embedding: str = "native", slope: float | None = None) -> Reading:
    """A density estimator: ``posterior.posterior_estimator``, or what ``NPE(prior).train()`` returns.

    Args:
        estimator: the estimator.
        embedding: ``"outside"`` to leave the embedding network with the user: the context of the result
            is then its output.
        slope: of zuko's transformations, as in ``zuko.read``.
    """
    name = kind(estimator)
    where = f"sbi's {name}"
    if hasattr(estimator, "posterior_estimator"):
        raise UnsupportedModel(
            f"{where} also truncates to the prior: import its posterior_estimator."
        )
    alone = name == "ZukoUnconditionalFlow"
    if name not in ("NFlowsFlow", "ZukoFlow") and not alone:
        raise UnsupportedModel(
            f"{where} is no flow: only NFlowsFlow, ZukoFlow and ZukoUnconditionalFlow are."
        )
    own = "" if alone else "_condition_shape _embedding_net"
    expect(estimator, where, f"net _input_shape {own}")
    outside = nflows.is_outside(embedding)
    shapes = [("_input_shape", "samples"), ("_condition_shape", "conditions")]
    for shape, what in shapes[: 1 if outside or alone else 2]:
        if len(field(estimator, shape, where)) != 1:
            hint = "" if what == "samples" else ": embed them yourself, with embedding='outside'"
            raise UnsupportedModel(
                f"{where} of {what} that are no vectors has no counterpart{hint}."
            )
    if name == "NFlowsFlow":
        if slope is not None:
            raise UnsupportedModel(f"{where} is a flow of nflows, which has no slope.")
        return nflows.read_copy(float64_copy(estimator.net), embedding, NETWORK)
    estimator = float64_copy(estimator)
    reading = zuko.read_copy(estimator.net, slope)
    if outside or alone:
        return reading
    net = field(estimator, "_embedding_net", where)

    def run(x: Any, context: Any) -> Any:
        return zuko.call(estimator.net.transform(net(context)), x)

    return embedded(reading, net, in_numpy(run))


def embedded(reading: Reading, net: Any, run: Run | None) -> Reading:
    """A reading of zuko's flow behind the embedding network of its estimator."""
    notes = list(reading.notes)
    width = max(parts.context_dim(item) for layer in reading.layers for item in layer.parts)
    nets = nflows.embedding_parts(net, width, NETWORK, notes)
    embed = nflows.embed_with(net) if nets else None
    return replace(reading, context_net=nets, embed=embed, run=run, notes=notes)

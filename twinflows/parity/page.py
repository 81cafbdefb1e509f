"""A parity report as one self-contained HTML page: no script, no file beside it."""

import json
import math
from collections.abc import Iterable
from html import escape

import numpy as np

from twinflows.parity.report import Comparison, ParityReport, figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 60rem;
  color: #1d2433; background: #fff; overflow-wrap: break-word; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0;
  border-bottom: 1px solid #dfe3ea; }
th { font-weight: 600; }
td.number, td.ok, td.failed { white-space: nowrap; }
td.long { overflow-wrap: anywhere; }
small { display: block; color: #5b6477; }
.ok { color: #15703c; } .failed { color: #b3261e; font-weight: 600; }
.verdict { font-size: 1.3rem; }
.bar { position: relative; height: .7rem; background: #f0f2f6; margin: .1rem 0 .5rem; }
.bar i { position: absolute; inset: 0 auto 0 0; background: #3467a8; }
.bar.failed i { background: #b3261e; }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 2px; background: #1d2433; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: 13px; } svg { width: 100%; height: auto; display: block; }
pre { background: #f4f6f9; padding: .7rem; white-space: pre-wrap; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; font-size: 14px; } .wide { display: none; }
  td, th { padding-right: .4rem; }
}
"""

GLOSSARY = {
    "eps": "the distance from 1 to the next floating-point number: 2.2e-16 in float64, 1.2e-7 in "
    "float32. Errors are relative to the size of what is compared (at least 1) and counted in eps.",
    "absolute": "the largest difference itself: of log-determinants and log-densities in nats, of z "
    "and x in their own units.",
    "z, x": "the latent that forward makes of a row, and the row that inverse makes of a latent.",
    "log_det, log_prob": "the log of the volume change of a map, and the log-density of a row.",
    "gradients": "of a random linear form of everything computed, in inputs and weights.",
    "round trip": "a row to its latent and back, in the named halves, against the row itself.",
    "autodiff": "the log-determinant against that of the Jacobian by automatic differentiation: the "
    "truth, which a formula that is wrong in both halves would miss.",
    "finite differences": "gradients along a random direction against differences of the values.",
    "oracle": "in float32, the float64 run of the same weights and inputs.",
    "probes": "rows beside the given ones: zeros, other seeds, entries up to 1,000, ends of the domain. "
    "The figures are those of the row that comes closest to its limit.",
    "raised": "a limit above its table value, by something that was measured; the reason says what.",
}


def html_page(report: ParityReport) -> str:
    """The page: verdict, what was judged, table, errors against their limits, single rows, glossary."""
    css = "ok" if report.passed else "failed"
    verdict = report.verdict[0].upper() + report.verdict[1:].lower()
    title = escape(f"Parity of {report.architecture['type']}")
    sentences = "".join(f'<p class="failed">{escape(text)}</p>' for text in report.findings)
    sentences += "".join(f"<p>{escape(text)}</p>" for text in report.notes)
    rows = "".join(_table_row(c) for c in report.comparisons)
    failed = sum(not c.passed for c in report.comparisons)
    count = f"{len(report.comparisons) - failed} of {len(report.comparisons)} comparisons passed."
    subject = "".join(
        f'<tr><th>{escape(name)}</th><td class="long">{escape(value)}</td></tr>'
        for name, value in (report.subject | report.environment).items()
    )
    words = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in GLOSSARY.items())
    model = escape(json.dumps(report.architecture, indent=2))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1><p class="verdict {css}">{verdict}.</p><p>{count}</p>{sentences}
<h2>What was judged</h2><table>{subject}</table>
<h2>Figures</h2><p>Errors and limits are in eps of their dtype; see the words at the end.</p>
<table><tr><th></th><th>quantity</th><th>error</th><th>limit</th><th>absolute</th>
<th class="wide">PyTorch to oracle</th><th class="wide">JAX to oracle</th></tr>{rows}</table>
<h2>Errors against their limits</h2>
<p>Bars: the error in eps, logarithmic from 0.1. Marks: the limit.</p>{_bars(report.comparisons)}
<h2>Errors of single rows, float64</h2><div class="charts">{_histograms(report.row_errors)}</div>
<h2>Words</h2><dl>{words}</dl>
<h2>The model</h2><pre>{model}</pre></body></html>
"""


def _table_row(c: Comparison) -> str:
    verdict = '<td class="ok">ok</td>' if c.passed else '<td class="failed">FAILED</td>'
    reason = f"<small>limit {escape(c.reason)}</small>" if c.reason.startswith("raised") else ""
    size = "" if c.absolute is None else f"{figure(c.absolute)} {escape(c.unit)}"
    oracle = "".join(
        f'<td class="wide number">{"" if e is None else figure(e)}</td>'
        for e in (c.torch_error, c.jax_error)
    )
    return (
        f"<tr>{verdict}<td>{escape(c.quantity)}<small>{c.dtype}</small>{reason}</td>"
        f'<td class="number">{figure(c.error)}</td><td class="number">{figure(c.limit)}</td>'
        f"<td>{size}</td>{oracle}</tr>"
    )


def _bars(comparisons: Iterable[Comparison]) -> str:
    shown = [c for c in comparisons if math.isfinite(c.limit)]
    sizes = [max(c.limit, c.error if math.isfinite(c.error) else 0, 1) for c in shown]
    top = math.log10(max(sizes, default=1)) + 1

    def position(value: float) -> float:
        """Percent of the width; the axis starts at 0.1 eps, and ends at what is not finite."""
        return 100 * min(1.0, (math.log10(max(value, 0.1)) + 1) / top) if value < math.inf else 100

    return "".join(
        f'<small>{escape(c.quantity)}, {c.dtype}</small><div class="bar{_css(c)}">'
        f'<i style="width:{position(c.error):.1f}%"></i>'
        f'<b style="left:{position(c.limit):.1f}%"></b></div>'
        for c in shown
    )


def _css(c: Comparison) -> str:
    return "" if c.passed else " failed"


def _histograms(row_errors: dict[str, list[float]]) -> str:
    width, height = 240, 100
    charts = []
    for name, errors in row_errors.items():
        finite = np.array([e for e in errors if math.isfinite(e)])
        counts, edges = np.histogram(finite, bins=24)
        bar = width / len(counts)
        bars = "".join(
            f'<rect x="{i * bar:.1f}" y="{height * (1 - count / max(1, counts.max())):.1f}" '
            f'width="{bar - 1:.1f}" height="{height * count / max(1, counts.max()):.1f}"/>'
            for i, count in enumerate(counts)
        )
        left = len(errors) - len(finite)
        text = f"{name}: {len(errors)} rows, errors from {edges[0]:.2g} to {edges[-1]:.2g} eps"
        text += f", {left} not finite" if left else ""
        charts.append(
            f'<figure><svg viewBox="0 0 {width} {height}" fill="#3467a8" role="img">{bars}</svg>'
            f"<figcaption>{escape(text)}</figcaption></figure>"
        )
    return "".join(charts)

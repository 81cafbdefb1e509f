"""A parity report as one self-contained HTML page: no script, no file beside it."""

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from flow_bridge.architecture import to_json

if TYPE_CHECKING:
    from twinflows.parity.compare import Comparison, ParityReport

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #1d2433; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #dfe3ea; }
.ok { color: #15703c; } .failed { color: #b3261e; font-weight: 600; }
pre { background: #f4f6f9; padding: .7rem; overflow-x: auto; } svg { width: 100%; height: auto; }
"""


def html_page(report: "ParityReport") -> str:
    """The page: verdict, table, errors against their limits, the distribution over rows."""
    verdict = "The two are one model" if report.passed else "The two differ"
    css = "ok" if report.passed else "failed"
    rows = "".join(_table_row(c) for c in report.comparisons)
    environment = ", ".join(f"{k} {v}" for k, v in report.environment.items())
    title = escape(f"Parity of {report.architecture['type']}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1><p class="{css}">{verdict}.</p>
<p>Errors are in units of eps of their dtype; the oracle is the float64 run of the same weights.</p>
<table><tr><th>quantity</th><th>dtype</th><th>PyTorch against JAX</th><th>limit</th>
<th>PyTorch against oracle</th><th>JAX against oracle</th><th></th></tr>{rows}</table>
<h2>Errors against their limits</h2>{_bars(report.comparisons)}
<h2>Errors of single rows, float64</h2>{_histograms(report.row_errors)}
<h2>The model</h2><pre>{escape(to_json(report.architecture))}</pre>
<p>{escape(environment)}</p></body></html>
"""


def _table_row(c: "Comparison") -> str:
    figures = [c.error, c.limit, c.torch_error, c.jax_error]
    cells = "".join(f"<td>{'' if f is None else f'{f:.3g}'}</td>" for f in figures)
    verdict = '<td class="ok">ok</td>' if c.passed else '<td class="failed">FAILED</td>'
    return f"<tr><td>{escape(c.quantity)}</td><td>{c.dtype}</td>{cells}{verdict}</tr>"


def _bars(comparisons: "list[Comparison]") -> str:
    left, width, step = 260, 600, 18
    top = max([1.0, *(math.log10(max(c.limit, c.error, 1)) for c in comparisons if _finite(c))])

    def position(value: float) -> float:
        """log10 from 0.1 eps on; anything smaller or exactly 0 starts the axis."""
        return width * (math.log10(min(max(value, 0.1), 10**top)) + 1) / (top + 1)

    parts = []
    for i, c in enumerate(comparisons):
        y = 4 + i * step
        colour = "#3467a8" if c.passed else "#b3261e"
        parts.append(
            f'<text x="{left - 8}" y="{y + 11}" text-anchor="end" font-size="12">'
            f"{escape(c.quantity)} {c.dtype[-2:]}</text>"
            f'<rect x="{left}" y="{y}" width="{position(c.error):.1f}" height="12" fill="{colour}"/>'
            f'<line x1="{left + position(c.limit):.1f}" x2="{left + position(c.limit):.1f}" '
            f'y1="{y - 2}" y2="{y + 14}" stroke="#1d2433" stroke-width="2"/>'
        )
    base = 4 + len(comparisons) * step
    for power in range(-1, int(top) + 1):
        x = left + position(10.0**power)
        parts.append(
            f'<text x="{x:.1f}" y="{base + 14}" text-anchor="middle" font-size="11">1e{power}</text>'
        )
    return (
        f'<svg viewBox="0 0 {left + width + 20} {base + 22}">{"".join(parts)}</svg>'
        "<p>Bars: error in eps, logarithmic. Marks: the limit.</p>"
    )


def _histograms(row_errors: dict[str, list[float]]) -> str:
    width, height, gap = 200, 110, 16
    parts = []
    for i, (name, errors) in enumerate(row_errors.items()):
        finite = np.array([e for e in errors if math.isfinite(e)])
        counts, edges = np.histogram(finite, bins=24)
        x = i * (width + gap)
        bar = width / len(counts)
        for j, count in enumerate(counts):
            h = height * count / max(1, counts.max())
            parts.append(
                f'<rect x="{x + j * bar:.1f}" y="{height - h + 4:.1f}" width="{bar - 1:.1f}" '
                f'height="{h:.1f}" fill="#3467a8"/>'
            )
        label = f"{name}: up to {edges[-1]:.2g} eps, {len(finite)} of {len(errors)} rows"
        parts.append(f'<text x="{x}" y="{height + 20}" font-size="11">{escape(label)}</text>')
    total = max(1, len(row_errors)) * (width + gap)
    return f'<svg viewBox="0 0 {total} {height + 28}">{"".join(parts)}</svg>'


def _finite(c: "Comparison") -> bool:
    return math.isfinite(c.error) and math.isfinite(c.limit)

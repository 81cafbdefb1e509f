"""What a run found, as JSON, as a page with a summary at its head, and as pictures.

``python -m benchmarks.report`` writes the page and the pictures of this folder anew, from its
``results.json`` and ``notes.md``.
"""

import json
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.rows import CPU, FIRST, ROWS, Place, Row

OURS, FLOOR = "twinflows", "floor"
EVALUATIONS = "evaluations"
OPS = {
    "log_prob": "log_prob",
    "train": "training step",
    "train_default": "the same, others with default Adam",
    "train_compiled": "the same, compiled",
    "sample": "sampling",
    "forward": "one pass over as many rows",
    "inverse": "inverse",
    "build": "import and construction",
    "first_log_prob": "first log_prob",
    "first_train": "first training step",
    "memory": "peak of memory",
    EVALUATIONS: "network evaluations of a log_prob",
}
UNITS = dict.fromkeys(OPS, ("ms", 1000.0)) | dict.fromkeys(FIRST, ("s", 1.0))
UNITS |= {"memory": ("MiB", 2.0**-20), EVALUATIONS: ("", 1.0)}
IN_SUMMARY = ("log_prob", "train", "sample", "inverse", *FIRST)
LEVEL = 1.05
"""Ratios within this factor of 1 are called level: noise is larger."""
PACKAGES = (
    *("twinflows", "torch", "jax", "zuko", "nflows", "normflows", "FrEIA", "torchflows"),
    *("flowjax", "distrax", "bijx", "diffrax"),
)

Record = dict[str, Any]
"""One row in one framework: its sizes, and ``contenders``, each with ``parameters`` and ``found``: by
operation the median, the median ratio to ours (``None`` for ours), how many rounds, and the date."""


def record(
    row: Row,
    framework: str,
    parameters: dict[str, int],
    times: dict[str, dict[str, list[float]]],
    place: Place = CPU,
) -> Record:
    """Medians of what was measured in rounds."""
    date = datetime.now(UTC).date().isoformat()
    contenders: dict[str, Any] = {}
    for name, found in times.items():
        cells = {}
        for op, values in found.items():
            own = times.get(OURS, {}).get(op)
            ratios = [a / b for a, b in zip(values, own or [], strict=False)]
            ratio = statistics.median(ratios) if own and name != OURS else None
            cells[op] = [statistics.median(values), ratio, len(values), date]
        contenders[name] = {"parameters": parameters.get(name), "found": cells}
    sizes = {"dim": row.dim, "hidden": row.hidden_dims, "layers": row.layers, "batch": row.batch}
    if place.device == "gpu":
        sizes |= {"device": "gpu", "precision": place.precision}
    plain = json.loads(json.dumps(sizes))
    return {"row": row.name, "framework": framework, **plain, "contenders": contenders}


def merged(records: list[Record], new: Record) -> list[Record]:
    """The records with one more, whose operations take the place of those measured before; in the order of
    the rows."""
    result = []
    for old in records:
        if (old["row"], old["framework"]) == (new["row"], new["framework"]):
            for name, known in old["contenders"].items():
                entry = new["contenders"].setdefault(name, {"parameters": None, "found": {}})
                entry["parameters"] = entry["parameters"] or known["parameters"]
                entry["found"] = known["found"] | entry["found"]
            result.append(new)
        else:
            result.append(old)
    places = {name: i for i, name in enumerate(ROWS)}
    return sorted(
        result if new in result else [*result, new],
        key=lambda record: (places.get(record["row"], len(places)), record["framework"] == "jax"),
    )


def read(path: Path) -> list[Record]:
    """The records of earlier runs; none where there are none."""
    return json.loads(path.read_text())["records"] if path.exists() else []


def write(path: Path, records: list[Record]) -> None:
    """The records, and beside them the page and the pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text())["versions"] if path.exists() else {}
    lines = ",\n".join(json.dumps(entry) for entry in records)  # one for each, as git merges lines
    found = json.dumps(known | versions())
    path.write_text(f'{{"versions": {found}, "records": [\n{lines}\n]}}\n')
    names = pictures(path, records)
    notes = path.with_name("notes.md")
    if notes.exists():
        text = notes.read_text() + before_and_after(path.with_name("before.json"))
        path.with_name("README.md").write_text(page(records, names, text))
    else:
        path.with_suffix(".md").write_text(page(records, names))


def versions() -> dict[str, str]:
    """Of the packages of ``PACKAGES`` that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def page(records: Sequence[Record], names: Sequence[str], notes: str = "") -> str:
    """The summary, the pictures of these names, notes and tables."""
    parts = [
        "# Benchmarks\n",
        summary(records),
        *(f"![The same as a picture]({name})\n" for name in names),
    ]
    return "\n".join([*parts, notes, "## Tables\n", *(table(entry) for entry in records)])


def before_and_after(path: Path) -> str:
    """The section of what ``benchmarks.compare`` has written; nothing where there is no such file."""
    if not path.exists():
        return ""
    found = json.loads(path.read_text())
    lines = [
        "\n## Before and after\n",
        f"Ours at {found['there']} and at {found['here']}, in turns in one run",
        "(`benchmarks.compare`): medians, the median ratio, and where the middle half of the ratios lies.\n",
        "| row | framework | operation | before (ms) | after (ms) | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for entry in found["records"]:
        names = f"| {entry['row']} | {entry['framework']} | {OPS[entry['op']]} |"
        ratio = f"{entry['ratio']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"
        there, here = 1e3 * entry["there"], 1e3 * entry["here"]
        lines.append(f"{names} {there:.2f} | {here:.2f} | {ratio} |")
    return "\n".join(lines) + "\n"


def best(entry: Record, op: str) -> tuple[float, str] | None:
    """The ratio to ours of the fastest other, and its name; ``None`` where there is no other."""
    others = [
        (found["found"][op][1], name)
        for name, found in entry["contenders"].items()
        if name not in (OURS, FLOOR) and found["found"].get(op, [None, None])[1] is not None
    ]
    return min(others) if others else None


def summary(records: Sequence[Record]) -> str:
    """One line for each row: the best other as a multiple of ours, in bold where it is below 1."""
    columns = [op for op in IN_SUMMARY if any(best(entry, op) for entry in records)]
    lines, ratios = [], []
    for entry in records:
        cells = []
        for op in columns:
            found = best(entry, op)
            if found:
                ratios.append(found[0])
                text = f"{found[0]:.2f} {found[1]}"
                cells.append(f"**{text}**" if found[0] < 1 else text)
            else:
                cells.append("-")
        if any(cell != "-" for cell in cells):
            lines.append(f"| {entry['row']} | {entry['framework']} | " + " | ".join(cells) + " |")
    first, level = sum(r > LEVEL for r in ratios), sum(1 / LEVEL <= r <= LEVEL for r in ratios)
    count = (
        f"The fastest of the others as a multiple of ours. Of {len(ratios)} figures ours is first in "
        f"{first}, level (within {LEVEL - 1:.0%}) in {level}, behind in {len(ratios) - first - level}."
    )
    header = ["row", "framework", *(OPS[op] for op in columns)]
    rule = "|" + "---|" * len(header)
    return "\n".join([count, "", "| " + " | ".join(header) + " |", rule, *lines]) + "\n"


def cell(found: dict[str, Any], op: str) -> str:
    """A median and, for others than ours, the ratio to ours."""
    if op not in found:
        return "-"
    value, ratio = found[op][:2]
    scaled = value * UNITS[op][1]
    text = f"{scaled:.0f}" if op in (EVALUATIONS, "memory") else f"{scaled:.2f}"
    return text if ratio is None or op == EVALUATIONS else f"{text} ({ratio:.2f}x)"


def table(entry: Record) -> str:
    """The markdown table of one row in one framework."""
    contenders = entry["contenders"]
    columns = [op for op in OPS if any(op in c["found"] for c in contenders.values())]
    titles = [f"{OPS[op]} ({UNITS[op][0]})" if UNITS[op][0] else OPS[op] for op in columns]
    dim = entry["dim"]
    lines = [
        f"### {entry['row']} in {entry['framework']}",
        "",
        f"dim {' x '.join(map(str, dim)) if isinstance(dim, list) else dim}, hidden "
        f"{' x '.join(map(str, entry['hidden']))}, {entry['layers']} layers, batch {entry['batch']}"
        + (f", GPU, float32 products {entry['precision']}" if "precision" in entry else ""),
        "",
        "| | parameters | " + " | ".join(titles) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, contender in contenders.items():
        count = f"{contender['parameters']:,}" if contender["parameters"] else "-"
        cells = [cell(contender["found"], op) for op in columns]
        lines.append(f"| {name} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def pictures(path: Path, records: Sequence[Record]) -> list[str]:
    """Every figure of the summary as a point, and, of the large rows, growth with each size.

    Returns:
        The names of the files, which lie beside ``path``.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "twinflows", "svg.fonttype": "none"}
    from matplotlib import pyplot

    def save(figure: Any, suffix: str) -> None:
        target = path.with_name(path.stem + suffix)
        figure.savefig(target, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
        names.append(target.name)

    names: list[str] = []
    compared = [entry for entry in records if any(best(entry, op) for op in IN_SUMMARY)]
    if compared:
        figure, axes = pyplot.subplots(figsize=(8, 1 + 0.22 * len(compared)))
        for op in IN_SUMMARY:
            found = [(best(entry, op), -i) for i, entry in enumerate(compared)]
            points = [(ratio[0], y) for ratio, y in found if ratio]
            if points:
                marker = "s" if op in FIRST else "o"
                axes.plot(
                    *zip(*points, strict=True), marker, label=OPS[op], markersize=5, alpha=0.8
                )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", xlabel="time of the fastest other, as a multiple of ours")
        labels = [f"{entry['row']}, {entry['framework']}" for entry in compared]
        axes.set_yticks([-i for i in range(len(compared))], labels, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        save(figure, ".svg")
    grown = [entry for entry in records if entry["row"] == growth_name(entry)]
    if grown:
        save(growth(grown, pyplot), "-growth.svg")
    return names


def growth_name(entry: Record) -> str:
    """The name that a row of growing sizes has."""
    return f"realnvp-{entry['dim']}-{entry['layers']}-{entry['batch']}"


def growth(records: Sequence[Record], pyplot: Any) -> Any:
    """Time and memory of a training step against each size, the others at their usual value."""
    sizes = ("dim", "layers", "batch")
    usual = {size: statistics.mode(entry[size] for entry in records) for size in sizes}
    figure, grid = pyplot.subplots(2, len(sizes), figsize=(11, 6), sharey="row")
    for panels, op in zip(grid, ("train", "memory"), strict=True):
        for axes, size in zip(panels, sizes, strict=True):
            lines: dict[str, list[tuple[float, float]]] = {}
            for entry in records:
                if all(entry[other] == usual[other] for other in sizes if other != size):
                    for name, contender in entry["contenders"].items():
                        if op in contender["found"] and name != FLOOR:
                            value = contender["found"][op][0] * UNITS[op][1]
                            label = f"{name}, {entry['framework']}"
                            lines.setdefault(label, []).append((entry[size], value))
            for label, points in sorted(lines.items()):
                own = label.startswith(OURS)
                axes.plot(
                    *zip(*sorted(points), strict=True),
                    "o-" if own else "o--",
                    label=label,
                    linewidth=2 if own else 1,
                    markersize=3,
                )
            axes.set(xscale="log", yscale="log", xlabel=size)
        panels[0].set_ylabel(f"{OPS[op]} ({UNITS[op][0]})")
    grid[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    results = Path(__file__).with_name("results.json")
    write(results, read(results))

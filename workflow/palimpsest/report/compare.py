"""Two reports side by side: what differs in config, versions and data, and in the numbers.

Both are directories that `palimpsest report` has written, of this clone or another. Stages and
numbers are of the same thing where model, method, order, seed and lineage have the same names; the
benchmarks may be called differently, as one that is a half of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.files import canonical_json, read_json
from palimpsest.report import traces
from palimpsest.report.paper.tables import signed, with_interval
from palimpsest.report.results import Estimate
from palimpsest.report.terminal import columns

CELL = ["model", "method", "order", "seed", "lineage", "task", "metric"]
AGGREGATE = ["model", "method", "order", "seed", "metric"]
FOLLOWS = ("lineage", "seed", "parent")  # parts of an identity that say nothing of their own
NOTHING = "–"
SAME = 5e-5  # numbers are written with four decimals
MOST = 20  # rows of differences

Texts = list[list[str]]


def compare(a: Path, b: Path) -> str:
    """Return as text what differs between the reports in two directories.

    ValueError names a file that is missing: not the directory of a report, or an older one's.
    """
    stages = [_stages(out) for out in (a, b)]
    both = [name for name in stages[0] if name in stages[1]]
    blocks = [
        f"A  {a}\nB  {b}",
        _block(f"Stages: {len(both)} in both", _alone(*stages)),
        _changes(both, *stages),
        _numbers("Cells", "matrix", CELL, a, b),
        _numbers("Aggregates", "summary", AGGREGATE, a, b),
    ]
    return "\n\n".join(blocks) + "\n"


def _stages(out: Path) -> dict[str, Any]:
    """Return the stages of a report, called without their benchmark."""
    found = read_json(out / traces.FILE)["stages"]
    return {name.split("/", 1)[1]: stage for name, stage in found.items()}


def _block(title: str, rows: Texts) -> str:
    return f"{title}\n{columns(rows)}" if rows else title


def _alone(a: Mapping[str, Any], b: Mapping[str, Any]) -> Texts:
    """Return in how many stages of each experiment one report is alone."""
    rows = []
    for which, one, other in (("A", a, b), ("B", b, a)):
        alone = Counter("/".join(name.split("/")[:3]) for name in one if name not in other)
        rows += [[experiment, f"only in {which}", str(n)] for experiment, n in alone.items()]
    return [["experiment", "", "stages"], *rows] if rows else []


def _changes(both: list[str], a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return a row a setting that differs: its values, and in how many stages they do."""
    found: Counter[tuple[str, str, str]] = Counter()
    for name in both:
        one, other = (dict(_settings(stages[name])) for stages in (a, b))
        for key in dict.fromkeys((*one, *other)):
            values = one.get(key, NOTHING), other.get(key, NOTHING)
            if values[0] != values[1]:
                found[key, *values] += 1
    if not found:
        return "Their config, data, commits and versions are the same"
    rows = [[*change, f"{count} of {len(both)}"] for change, count in found.items()]
    return _block("What differs in these", [["", "A", "B", "stages"], *rows])


def _settings(stage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a stage was made by and from: each setting by its path, as JSON."""
    identity = {k: v for k, v in stage["identity"].items() if k not in FOLLOWS}
    made = {key: stage[key] for key in ("data", "versions", "commit")}
    yield from _leaves({**identity, **made})


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else key)
    else:
        yield path, canonical_json(value)


def _numbers(what: str, table: str, keys: list[str], a: Path, b: Path) -> str:
    """Return how the values of a table differ, where both reports have them; the largest first."""
    frames = [pd.read_parquet(out / f"{table}.parquet").astype({"seed": str}) for out in (a, b)]
    met = frames[0].merge(frames[1], on=keys, suffixes=("_a", "_b"))
    met["by"] = met["value_b"] - met["value_a"]
    other = met[met["by"].abs() > SAME].sort_values("by", key=abs, ascending=False)
    rows = [
        [" ".join(row[keys]), _value(row, "a"), _value(row, "b"), signed(row["by"])]
        for _, row in other[:MOST].iterrows()
    ]
    more = f"; the {MOST} largest differences" if len(other) > MOST else ""
    title = f"{what}: {len(met)} in both, {len(met) - len(other)} of them equal{more}"
    return _block(title, [["", "A", "B", "B − A"], *rows] if rows else [])


def _value(row: pd.Series, which: str) -> str:
    return with_interval(Estimate(*[row[f"{name}_{which}"] for name in ("value", "low", "high")]))

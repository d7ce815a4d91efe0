"""How alike tasks are, beside what learning one makes a model forget of another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from palimpsest.report.matrix import Matrix
from palimpsest.report.paper.tables import Table
from palimpsest.report.results import Estimate, Results
from palimpsest.report.statistics.bootstrap import interval, resample_indices

ALIKE = ["benchmark", "model", "modality", "task_i", "task_j", "value"]
LOST = ["benchmark", "model", "method", "old", "new", "similarity", "forgetting", "stages"]
FEWEST = 3  # pairs of which a correlation is told


@dataclass(frozen=True, eq=False)
class Relation:
    """One model and method; P ordered pairs of tasks, of which the first was learnt earlier.

    similarity_P  how alike the two are to the model
    forgotten_P   the points that the first lost in the stage that learnt the second: the mean over
                  the stages of all orders and seeds in which that was measured, count_P of them
    correlation   Pearson's r of the two over the pairs; None where it is not defined
    """

    model: str
    method: str
    title: str
    pairs: tuple[tuple[str, str], ...]
    similarity_P: np.ndarray
    forgotten_P: np.ndarray
    count_P: np.ndarray
    correlation: Estimate | None


def relations(results: Results) -> list[Relation]:
    """Return one for each model and method of which a pair of tasks was measured."""
    keyed: dict[tuple[str, str, str], list[Matrix]] = {}
    for group in results.sequential:
        view = group.view
        if view.model in results.view.similarities:
            keyed.setdefault((view.model, view.name, view.title), []).extend(group.matrices)
    found = [_relation(results, key, matrices) for key, matrices in keyed.items()]
    return [one for one in found if one.pairs]


def _relation(results: Results, key: tuple[str, str, str], matrices: list[Matrix]) -> Relation:
    lost = losses(matrices)
    names = [task.name for task in results.view.known]
    overall_TT = results.view.similarities[key[0]]["overall"]
    similarity_P = np.array([overall_TT[names.index(a), names.index(b)] for a, b in lost])
    forgotten_P = np.array([np.mean(list(values.values())) for values in lost.values()])
    return Relation(
        *key, pairs=tuple(lost), similarity_P=similarity_P, forgotten_P=forgotten_P,
        count_P=np.array([len(values) for values in lost.values()]),
        correlation=correlation(similarity_P, forgotten_P),
    )  # fmt: skip


def losses(matrices: Iterable[Matrix]) -> dict[tuple[str, str], dict[Path, float]]:
    """Return A[t-1,i] - A[t,i] in points for every task i known before stage t, which learns j.

    By (i, j) and then by the later cell, so that a stage that several orders share counts once.
    """
    found: dict[tuple[str, str], dict[Path, float]] = {}
    for matrix in matrices:
        for t, row in enumerate(matrix.experiment.rows[1:], start=1):
            for old, own in zip(matrix.tasks, matrix.own_T, strict=True):
                before, after = (matrix.cells.get((k, old)) for k in (t - 1, t))
                if not 0 <= own < t or before is None or after is None:
                    continue
                if np.isfinite(lost := before.value - after.value):
                    for new in row.learnt:
                        found.setdefault((old, new), {})[after.path] = lost
    return found


def correlation(x_P: np.ndarray, y_P: np.ndarray) -> Estimate | None:
    """Return Pearson's r with its 95 % interval, by resampling pairs; None where it has none.

    It has none with fewer than three pairs, or where one of the two does not vary.
    """
    if len(x_P) < FEWEST or np.isnan(value := pearson(x_P, y_P)):
        return None
    index_BP = np.concatenate(list(resample_indices(len(x_P), "similarity")))
    low, high = interval(pearson(x_P[index_BP], y_P[index_BP]))
    return Estimate(float(value), float(low), float(high))


def pearson(x_P: np.ndarray, y_P: np.ndarray) -> np.ndarray:
    """Return Pearson's r over the last axis, NaN where one of the two does not vary."""
    x, y = (v - v.mean(-1, keepdims=True) for v in (x_P, y_P))
    varies = (np.ptp(x_P, axis=-1) > 0) & (np.ptp(y_P, axis=-1) > 0)
    norm = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(varies, (x * y).sum(-1) / np.where(varies, norm, 1.0), np.nan)


def frames_of(results: Results) -> dict[str, pd.DataFrame]:
    """Return the two tables for programs; nothing for a study that asks for no similarity."""
    if not results.view.similarities:
        return {}
    names, benchmark = [task.name for task in results.view.known], results.view.benchmark
    alike = [
        {
            "benchmark": benchmark, "model": model, "modality": modality, "task_i": names[i],
            "task_j": names[j], "value": s_TT[i, j],
        }
        for model, matrices in results.view.similarities.items()
        for modality, s_TT in matrices.items()
        for i, j in zip(*np.triu_indices(len(names), k=1), strict=True)
    ]  # fmt: skip
    lost = [
        {
            "benchmark": benchmark, "model": one.model, "method": one.method, "old": old,
            "new": new, "similarity": s, "forgetting": f, "stages": count,
        }
        for one in relations(results)
        for (old, new), s, f, count in zip(
            one.pairs, one.similarity_P, one.forgotten_P, one.count_P, strict=True
        )
    ]  # fmt: skip
    return {
        "similarity": pd.DataFrame(alike, columns=ALIKE),
        "similarity_forgetting": pd.DataFrame(lost, columns=LOST),
    }


def paper_tables(results: Results) -> list[Table]:
    """Return the correlation of similarity and forgetting: a row a model and method."""
    found = relations(results)
    models = {one.model for one in found}
    rows = [
        [
            f"{one.title} ({one.model})" if len(models) > 1 else one.title,
            str(len(one.pairs)),
            correlation_text(one),
        ]
        for one in found
    ]
    caption = (
        "Pearson’s correlation, over ordered pairs of tasks, of how alike the two are and how much "
        "of the first is forgotten in the stage that learns the second, with 95 % intervals by "
        "resampling pairs (which are not independent: each task is in many)"
    )
    return [("similarity", caption, ["", "pairs", "r"], rows)] if rows else []


def correlation_text(one: Relation) -> str:
    """Write a correlation as `0.31 [−0.02, 0.58]`, a dash where it is not defined."""
    if one.correlation is None:
        return "–"
    e = one.correlation
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]".replace("-", "−")

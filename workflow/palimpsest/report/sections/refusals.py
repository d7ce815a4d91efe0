"""What is told of unlearning in a study: what is refused, rightly and wrongly, and what is kept.

The cells of the tasks that stages teach a model to refuse, told apart by combination of picture and
text, become the aggregates of `unlearning.py`. Resamples are those of the rest of the report: one
draw of a task's examples serves every stage, method, seed and measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.report.matrix import Cell, Matrix
from palimpsest.report.paper.tables import Table, estimate_frame, identity, seeds_of, with_interval
from palimpsest.report.results import Estimate, Group, Results, Samples, estimated
from palimpsest.report.sections.differences import Difference, about, compare, with_mark
from palimpsest.report.spec import AS_PUBLISHED, FIDELITY, METRIC
from palimpsest.report.statistics import unlearning
from palimpsest.report.statistics.bootstrap import (
    interval,
    mean_parsed,
    pool_measured,
    with_resamples,
)

Array = np.ndarray
Steps = dict[str, Array]  # a quantity's name -> (1 + resamples, S), the first as measured
COMBINATIONS = ("HH", "HU", "UH", "UU")  # of picture and text, harmful or not
FORGET = COMBINATIONS[0]  # to be refused


@dataclass(frozen=True)
class Quantity:
    """How a number of unlearning is called and read; `text` says what in it is inferred."""

    name: str
    title: str
    better: str
    text: str
    is_share: bool = True  # so that it lies between 0 and 100


QUANTITIES = (
    Quantity(
        "specificity", "S", "higher",
        "specificity: the mean over the held-out tasks of the score in percent of the base model’s "
        "own, so it can be above 100. Inferred from the released code: that the published S is "
        "this.",
        is_share=False,
    ),
    Quantity(
        "answer_rate", "AR", "higher",
        "answer rate: the share answered of what is to be answered, a mean over the tasks seen and "
        "then over those of the combinations HU, UH and UU that there are, none of them weighted. "
        "Inferred: which combinations belong to it; the released script takes these, its README UU "
        "alone.",
    ),
    Quantity(
        "refusal_rate", "RR", "higher",
        "refusal rate: the share refused of what is to be refused (HH), over the examples of all "
        "tasks seen together.",
    ),
    Quantity(
        "context_aware_refusal_rate", "CRR", "higher",
        "context-aware refusal rate: the share of HH that is refused in words that fit, as the "
        "judge by templates says, over the examples of all tasks seen together.",
    ),
    Quantity(
        "delta_refusal_rate", "ΔRR", "lower",
        "RR − CRR, in percentage points: refused in words that do not fit. Inferred: the released "
        "code prints both rates and no difference; published ones agree with it.",
        is_share=False,
    ),
    Quantity(
        "fidelity", "Fidelity", "higher",
        "ROUGE-L against the base model’s answers to what is to be answered, a mean over the tasks "
        "seen. It is one of the released code’s three measures of this, and needs no model.",
    ),
)  # fmt: skip
WHEN = {"avg": ("Avg", unlearning.average), "last": ("Last", unlearning.last)}
HOW = (
    "Tasks seen are those taught by then. Avg is the mean over the stages but for the first, as in "
    "CORE (its steps 1 to 15 of 0 to 15); Last is after the last stage."
)


@dataclass(frozen=True, eq=False)
class Told:
    """What is told of one sequential group; quantities that are not known are absent.

    steps      a quantity's name -> (3, S): its value and the ends of its interval, by stage
    estimates  `<name>_avg` and `<name>_last`, pooled over seeds;  by_seed  those of each experiment
    first      the first group of the same model and order
    beyond     the estimates minus those of `first`, in pairs; empty for that one itself
    """

    group: Group
    steps: dict[str, np.ndarray]
    estimates: dict[str, Estimate]
    by_seed: tuple[dict[str, Estimate], ...]
    first: Group
    beyond: dict[str, Difference]


# ------------------------------------------------------------------------------------ numbers


def told(results: Results, measured: Sequence[Results]) -> list[Told]:
    """Return what one measure tells of each sequential group; nothing if nothing is unlearnt.

    Only the tasks' metrics tell refusals from answers, corrected or as published. `measured` are
    all measures of the study: whether refusals fit, and fidelity, are told by others of them.
    """
    name = results.view.measure.name
    if name not in (METRIC, AS_PUBLISHED):
        return []
    context = next((one for one in measured if one.view.measure.context_of == name), None)
    fidelity = next((one for one in measured if one.view.measure.name == FIDELITY), None)
    steps = {}
    for group in results.sequential:
        others = [_same(group, other) for other in (context, fidelity)]
        steps[group] = [_steps(*each) for each in zip(group.matrices, *others, strict=True)]
    return [
        one
        for groups in results.settings.values()
        for one in _of_setting({group: steps[group] for group in groups if all(steps[group])})
    ]


def _same(group: Group, results: Results | None) -> Sequence[Matrix | None]:
    """Return the matrices of a group by another measure, seed by seed."""
    if results is None:
        return [None] * len(group.matrices)
    return next(one.matrices for one in results.groups if one.slug == group.slug)


def _of_setting(steps: dict[Group, list[Steps]]) -> list[Told]:
    """Return what is told of the groups of a model and order, from their steps seed by seed."""
    by_seed = {group: [_averaged(one) for one in each] for group, each in steps.items()}
    pooled = {group: _pooled_seeds(each, group) for group, each in by_seed.items()}
    beyond = compare([*pooled.values()], [(k, 0) for k in range(1, len(pooled))])
    return [
        Told(
            group=group,
            steps={
                name: np.stack([all_BS[0], *interval(all_BS[1:])])
                for name, all_BS in _pooled_seeds(steps[group], group).items()
            },
            estimates=estimated(pooled[group]),
            by_seed=tuple(estimated(one) for one in by_seed[group]),
            first=next(iter(steps)),
            beyond=beyond.get((k, 0), {}),
        )
        for k, group in enumerate(steps)
    ]


def _averaged(steps: Steps) -> Samples:
    """Return the averages over stages that are known, and what is known of the last one."""
    found = {
        f"{name}_{when}": over(all_BS)
        for name, all_BS in steps.items()
        for when, (_, over) in WHEN.items()
    }
    return {name: value_B for name, value_B in found.items() if np.isfinite(value_B[0])}


def _pooled_seeds(each: Sequence[dict[str, Array]], group: Group) -> dict[str, Array]:
    """Pool the seeds of a group; `each` has a seed's resamples of quantities or of averages."""
    shared = [name for name in each[0] if all(name in one for one in each)]
    pooled = {name: pool_measured([one[name] for one in each], group.key) for name in shared}
    shares = tuple(quantity.name for quantity in QUANTITIES if quantity.is_share)
    return {
        name: all_B.clip(0, 100) if name.startswith(shares) else all_B
        for name, all_B in pooled.items()
    }


def _steps(matrix: Matrix, context: Matrix | None, fidelity: Matrix | None) -> Steps:
    """Return the quantities of one experiment by stage; {} if it unlearns nothing."""
    tasks = _unlearnt(matrix)
    if not tasks:
        return {}
    rate_BSCT, count_BSCT = _rates(matrix, tasks)
    answered = np.array(COMBINATIONS) != FORGET
    refused = unlearning.pooled(rate_BSCT[:, :, 0], count_BSCT[:, :, 0])
    found = {
        "specificity": _specificity(matrix),
        "answer_rate": unlearning.answer_rate(100 - rate_BSCT[:, :, answered]),
        "refusal_rate": refused,
    }
    if context:
        rate_BSCT, count_BSCT = _rates(context, tasks)
        fitting = unlearning.pooled(rate_BSCT[:, :, 0], count_BSCT[:, :, 0])
        found["context_aware_refusal_rate"] = fitting
        found["delta_refusal_rate"] = unlearning.delta_refusal(refused, fitting)
    if fidelity:
        kept_BST = np.stack([_means(fidelity, task, _whole)[:, 1:, 0] for task in tasks], -1)
        found["fidelity"] = 100 * mean_parsed(kept_BST)
    return {name: all_BS for name, all_BS in found.items() if np.isfinite(all_BS[0]).any()}


def _unlearnt(matrix: Matrix) -> list[str]:
    """Return the tasks that stages taught to refuse: those whose examples have a combination."""
    return [
        task
        for task, own in zip(matrix.tasks, matrix.own_T, strict=True)
        if own >= 1 and matrix.cells[own, task].combination_N is not None
    ]


def _specificity(matrix: Matrix) -> Array:
    """Return S, (1 + resamples, S), over the tasks that are held out; zero-shot is row 0."""
    held_out = [t for t, known in zip(matrix.tasks, matrix.known_T, strict=True) if not known]
    if not held_out:
        return np.full((1, matrix.num_rows - 1), np.nan)
    score_BRU = np.stack([_means(matrix, task, _whole)[..., 0] for task in held_out], -1)
    return unlearning.specificity(score_BRU[:, 1:], score_BRU[:, :1])


def _rates(matrix: Matrix, tasks: list[str]) -> tuple[Array, Array]:
    """Return the score in percent by stage, combination and task, and how many examples have one.

    Both are (1 + resamples, S, C, T), NaN where a task is not yet taught or has no such examples.
    """
    means = [_means(matrix, task, _apart)[:, 1:] for task in tasks]
    num_T = np.array([matrix.cells[matrix.num_rows - 1, task].n for task in tasks])
    rate_BSCT, share_BSCT = np.split(np.stack(means, -1), 2, axis=2)
    return 100 * rate_BSCT, num_T * share_BSCT


def _whole(cell: Cell) -> Array:
    return cell.score_N[None]


def _apart(cell: Cell) -> Array:
    """Return the scores of each combination and then which there are, (2 C, N)."""
    is_CN = np.array(COMBINATIONS)[:, None] == cell.combination_N
    score_CN = np.where(is_CN, cell.score_N, np.nan)
    return np.concatenate([score_CN, np.isfinite(score_CN)])


def _means(matrix: Matrix, task: str, of: Callable[[Cell], Array]) -> Array:
    """Return the means of score vectors of each cell of a task, (1 + resamples, R, V).

    `of` gives the V vectors of a cell, (V, N). NaN in rows before the task is taught.
    """
    own = matrix.own_T[matrix.tasks.index(task)]
    rows = [r for r in range(matrix.num_rows) if r >= own and (r, task) in matrix.cells]
    score_RVN = np.stack([of(matrix.cells[row, task]) for row in rows])
    means_BK = with_resamples(score_RVN.reshape(-1, score_RVN.shape[-1]), task)
    out_BRV = np.full((len(means_BK), matrix.num_rows, score_RVN.shape[1]), np.nan)
    out_BRV[:, rows] = means_BK.reshape(len(means_BK), *score_RVN.shape[:2])
    return out_BRV


# ------------------------------------------------------------------------------------- tables


def frames_of(results: Results, found: Sequence[Told]) -> dict[str, pd.DataFrame]:
    """Return the averages and, stage by stage, what they are of; nothing if nothing is told."""
    if not found:
        return {}
    averages = estimate_frame(
        results, [(one.group, one.by_seed, one.estimates | _named(one)) for one in found]
    )
    steps = [
        {
            **identity(results, one.group.view), "seed": seeds_of(one.group), "step": step,
            "lineage": row.lineage, "metric": name, "value": value, "low": low, "high": high,
        }
        for one in found
        for name, ends_3S in one.steps.items()
        for step, (row, (value, low, high)) in enumerate(
            zip(one.group.view.rows[1:], ends_3S.T, strict=True), start=1
        )
    ]  # fmt: skip
    return {"unlearning": averages, "unlearning_steps": pd.DataFrame(steps)}


def _named(one: Told) -> dict[str, Estimate]:
    """Name the differences for a table in which the method is a column."""
    return {f"{name}_minus_{one.first.view.name}": e for name, e in one.beyond.items()}


def paper_tables(found: Sequence[Told]) -> list[Table]:
    """Return a row a quantity and a column a method, and the same minus the first method."""
    if not found:
        return []
    caption = (
        "Unlearning, in percent, with 95 % paired bootstrap intervals: what is refused of what is "
        "to be refused (RR; in fitting words: CRR), what is answered of the rest (AR), and what "
        "the model is still worth elsewhere (S); ↑ higher is better, ↓ lower is better"
    )
    header = ["", *[one.group.title for one in found]]
    tables = [("unlearning", caption, header, _rows([one.estimates for one in found]))]
    if others := [one for one in found if one.beyond]:
        shown = {f"{q.name}_last": f"{q.title} Last" for q in QUANTITIES}
        minus = (
            "The same minus the first method, in percentage points, resampled in pairs; "
            + about([one.beyond for one in others], shown)
        )
        header = ["", *[f"{one.group.title} minus {one.first.title}" for one in others]]
        rows = _rows([one.beyond for one in others], with_mark)
        tables.append(("unlearning-differences", minus, header, rows))
    return tables


def _lines() -> list[tuple[Quantity, str, str]]:
    return [(quantity, when, title) for quantity in QUANTITIES for when, (title, _) in WHEN.items()]


def _rows(
    estimates: Sequence[dict[str, Estimate]], text: Callable[[Any], str] = with_interval
) -> list[list[str]]:
    return [
        [
            f"{quantity.title} {title} {'↑' if quantity.better == 'higher' else '↓'}",
            *[text(one.get(f"{quantity.name}_{when}")) for one in estimates],
        ]
        for quantity, when, title in _lines()
        if any(f"{quantity.name}_{when}" in one for one in estimates)
    ]


def findings(found: Sequence[Told]) -> list[str]:
    """Return what the first method refuses and answers in the end, and which one answers most."""
    ends = ("refusal_rate_last", "answer_rate_last")
    both = [one for one in found if all(name in one.estimates for name in ends)]
    said = []
    for one in both[:1]:
        refused, answered = (with_interval(one.estimates[name]) for name in ends)
        said.append(
            f"After the last stage {one.group.title} refuses {refused} % of what is to be refused, "
            f"and answers {answered} % of the rest."
        )
    best = max(both, key=lambda one: one.estimates["answer_rate_last"].value, default=None)
    if best is not None and len(both) > 1:
        refused, answered = (with_interval(best.estimates[name]) for name in ends)
        said.append(f"{best.group.title} answers most: {answered} %, and refuses {refused} %.")
    return [sentence.replace(" %", "\u00a0%") for sentence in said]


def explained(found: Sequence[Told]) -> list[tuple[str, str]]:
    """Return title and explanation of each quantity that is told, and how they are averaged."""
    if not found:
        return []
    known = [q for q in QUANTITIES if any(q.name in one.steps for one in found)]
    return [*[(q.title, q.text) for q in known], ("Avg, Last", HOW)]

"""Predictions -> outcomes and scores of a cell. Needs no model, so that rescoring is free.

    predictions.parquet   id, prompt, prediction, references, num_tokens, stop_reason
    <measure>/outcomes.parquet      id, score (0 to 1, or more), right_kind, said (see form.py)
    <measure>/scores.json           task, metric, version, value (percent), n, right_kind (percent),
                                    form: the version of the rule for `said`

Of unlearning, where examples have a combination, also:

    <measure>/outcomes.parquet      combination
    <measure>/scores.json           by_combination: value and n of each

All have the ids of the split, or of the sample that was evaluated; the outcomes are in its order.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from palimpsest import metrics
from palimpsest.data.example import Example
from palimpsest.data.shards import Shards
from palimpsest.evaluation import form
from palimpsest.files import whole_file, write_json
from palimpsest.metrics import Scored

METADATA = b"palimpsest"  # key of the JSON that says what a Parquet file belongs to
COLUMNS = ["id", "prediction", "references"]  # of the predictions: what scoring reads

Scorer = tuple[str, dict[str, Any]]  # a metric's name and its options


def score_cell(
    cell: Path,
    measure: str,
    scorer: Scorer,
    answer_format: str,
    examples: Shards,
    stage_fingerprint: str,
    untouched: tuple[Path, str] | None = None,
) -> None:
    """Score a cell by a measure: `outcomes.parquet`, in the order of the split, and `scores.json`.

    `cell` is `…/cells/<evaluation>/<task>`; `examples` are those that were asked; an answer that
    matches `answer_format` in full is of the right kind; one that the metric leaves out (NaN) is
    counted, and is no part of the mean. A metric of likeness leaves `said` open. With `untouched`,
    the base model's cell of the same task and its fingerprint, the references are the answers in
    it. ValueError names the cell or its file if predictions are of a stage with another
    fingerprint, or not of exactly these examples.
    """
    predictions = read_predictions(cell, stage_fingerprint, examples)
    (cell / measure / "scores.json").unlink(missing_ok=True)  # it may not stand if this fails
    ids = examples.ids
    answers = [predictions[id] for id in ids]
    asked = Answered(examples, read_predictions(*untouched, examples)) if untouched else examples
    outcomes = []
    for id, answer, (example, score) in zip(ids, answers, scorers(asked, scorer), strict=True):
        given, right_kind = score(answer), is_of_right_kind(answer, answer_format)
        said = None
        if scorer[0] not in form.LIKENESS:
            said = form.said(answer, given, right_kind, example, score)
        outcomes.append({"id": id, "score": given, "right_kind": right_kind, "said": said})
    value, left_out = percent_known([row["score"] for row in outcomes])
    write_scores(
        cell / measure,
        examples,
        outcomes,
        {
            "task": cell.name,
            "metric": scorer[0],
            "version": metrics.metric(scorer[0]).VERSION,
            "value": value,
            "n": len(outcomes),
            **({"unparsable": left_out} if left_out else {}),
            "right_kind": percent([o["right_kind"] for o in outcomes]),
            "form": form.VERSION,
            "stage_fingerprint": stage_fingerprint,
        },
    )


@dataclass(frozen=True)
class Answered:
    """Examples whose one reference is what a model answered; `answers` are by example id."""

    examples: Shards
    answers: dict[str, str]

    def without_pictures(self) -> Iterator[Example]:
        """The examples in order with no image, as those of `Shards`."""
        for e in self.examples.without_pictures():
            yield replace(e, references=(self.answers[e.id],))


def is_of_right_kind(answer: str, answer_format: str) -> bool:
    """Return whether an answer, without blanks around it, matches a task's format in full."""
    return re.fullmatch(answer_format, answer.strip()) is not None


def write_scores(
    out: Path, examples: Shards, outcomes: list[dict[str, Any]], scores: dict[str, Any]
) -> None:
    """Write the outcomes of a cell's examples and then its scores, which never stand alone.

    Both are told apart by combination where the examples have one.
    """
    out.mkdir(parents=True, exist_ok=True)
    combinations = [e.combination for e in examples.without_pictures()]
    if any(combinations):
        both = zip(outcomes, combinations, strict=True)
        outcomes = [row | {"combination": combination} for row, combination in both]
        scores = scores | {"by_combination": by_combination(outcomes)}
    with whole_file(out / "outcomes.parquet") as partial:
        pq.write_table(pa.Table.from_pylist(outcomes), partial)
    write_json(out / "scores.json", scores)


def by_combination(outcomes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return value (percent; None if all is left out) and n of each combination that is there."""
    scores: dict[str, list[float]] = {}
    for row in outcomes:
        scores.setdefault(row["combination"], []).append(row["score"])
    return {
        name: {"value": percent_known(found)[0], "n": len(found)}
        for name, found in sorted(scores.items())
    }


def score_all(
    predictions: Iterable[str], examples: Shards | Answered, scorer: Scorer
) -> Iterator[float]:
    """Yield the scores of predictions in the order of the examples, by a metric with its options.

    ValueError names the example that the metric refuses.
    """
    for prediction, (_, score) in zip(predictions, scorers(examples, scorer), strict=True):
        yield score(prediction)


def scorers(
    examples: Shards | Answered, scorer: Scorer
) -> Iterator[tuple[Scored, Callable[[str], float]]]:
    """Yield each example in order, and what scores an answer to it.

    ValueError, of the latter, names the example that the metric refuses.
    """
    name, options = scorer
    references = (example.references for example in examples.without_pictures())
    score = metrics.scorer(name, options, references)
    for e in examples.without_pictures():
        yield (scored := _scored(e)), partial(_named, score, scored, e.id)


def _named(score: Callable[..., float], example: Scored, id: str, prediction: str) -> float:
    try:
        return score(prediction, example)
    except ValueError as error:
        raise ValueError(f"example {id!r}: {error}") from None


def _scored(e: Example) -> Scored:
    return Scored(e.references, e.choices, e.box, e.image_size, e.combination)


def percent(values: list[float]) -> float:
    """Return the mean x 100."""
    return 100 * sum(values) / len(values)


def percent_known(scores: list[float]) -> tuple[float | None, int]:
    """Return the mean x 100 of the scores that are not NaN, if there are any, and how many are."""
    known = [score for score in scores if not math.isnan(score)]
    return percent(known) if known else None, len(scores) - len(known)


def read_predictions(cell: Path, stage_fingerprint: str, examples: Shards) -> dict[str, str]:
    """Return the predictions by example id, once they are known to belong here."""
    path = cell / "predictions.parquet"
    try:
        table = pq.read_table(path, memory_map=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: file is missing; generate the cell's predictions") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from None
    if missing := sorted(set(COLUMNS) - set(table.column_names)):
        raise ValueError(f"{path}: columns are missing: {', '.join(missing)}")
    about = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
    if (found := about.get("stage_fingerprint")) != stage_fingerprint:
        raise ValueError(
            f"{cell}: the predictions are of a stage with fingerprint {found}, the config's is "
            f"{stage_fingerprint}: they belong to another config. Remove {path} to generate it anew"
        )
    rows = table.select(COLUMNS).to_pylist()
    _check_ids(path, [row["id"] for row in rows], examples.ids)
    _check_references(path, {row["id"]: row["references"] for row in rows}, examples)
    return {row["id"]: row["prediction"] for row in rows}


def _check_ids(path: Path, found: list[str], expected: list[str]) -> None:
    if not expected:
        raise ValueError(f"{path}: the split has no examples; there is nothing to score")
    problems = {
        "missing": set(expected) - set(found),
        "foreign": set(found) - set(expected),
        "duplicate": {id for id, times in Counter(found).items() if times > 1},
    }
    lines = [f"{len(ids)} {problem} ({_first(ids)})" for problem, ids in problems.items() if ids]
    if lines:
        raise ValueError(
            f"{path}: its ids are not exactly the {len(expected)} of the split: "
            f"{'; '.join(lines)}. Remove the file to generate it anew"
        )


def _check_references(path: Path, found: dict[str, list[str]], examples: Shards) -> None:
    """Same ids, other answers: the data was converted anew after the predictions were made."""
    references = ((e.id, list(e.references)) for e in examples.without_pictures())
    if other := {id for id, expected in references if found[id] != expected}:
        raise ValueError(
            f"{path}: {len(other)} examples have other references now ({_first(other)}); the data "
            "was changed after the predictions were made. Remove the file to generate it anew"
        )


def _first(ids: set[str]) -> str:
    shown = ", ".join(sorted(ids)[:3])
    return shown + (", …" if len(ids) > 3 else "")

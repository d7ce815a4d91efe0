"""Predictions -> judgements -> outcomes and scores of a cell.

    <cell>/predictions.parquet         what is rated
    <cell>/<judge>/outcomes.parquet    id, score (0 to 1; NaN if there is none), right_kind, reply
    <cell>/<judge>/scores.json         as of any measure, and unparsable, judge_fingerprint

A reply without a score is counted as unparsable, and is no part of the mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from palimpsest.config import Judge, Task
from palimpsest.data.shards import Shards
from palimpsest.evaluation.score import is_of_right_kind, percent, read_predictions, write_scores
from palimpsest.imports import quickly
from palimpsest.judging import parsing, serving
from palimpsest.judging.cache import Judgements
from palimpsest.judging.endpoint import Endpoint
from palimpsest.judging.prompts import prompt
from palimpsest.judging.version import version


class Asked(Protocol):
    """What replies: an endpoint or a local model."""

    def replies(self, prompts: list[str]) -> Iterator[tuple[str, str]]:
        """Yield each prompt with its reply, in any order."""


def judge_cells(
    cells: Iterable[tuple[Path, Task, Shards]],
    name: str,
    judge: Judge,
    stage_fingerprint: str,
    results: Path,
    sbatch: str = "",
) -> None:
    """Judge some cells of a stage; `cells` gives the directory, task and examples of each.

    `sbatch` are options for the job of a server that has to be started, such as its partition. A
    server is started, or a model loaded, only if something is asked that was never asked before.
    """
    connect = cache(lambda: _connect(name, judge, results, sbatch))
    for cell, task, examples in cells:
        judge_cell(cell, name, judge, task, examples, stage_fingerprint, results, connect)


def judge_cell(
    cell: Path,
    name: str,
    judge: Judge,
    task: Task,
    examples: Shards,
    stage_fingerprint: str,
    results: Path,
    connect: Callable[[], Asked],
) -> None:
    """Ask what is not yet known, and write `<cell>/<name>/outcomes.parquet` and `scores.json`.

    `cell` is `…/cells/<evaluation>/<task>`. Errors: ValueError as of `score_cell`, or if the
    judge cannot be reached.
    """
    predictions = read_predictions(cell, stage_fingerprint, examples)
    out = cell / name
    (out / "scores.json").unlink(missing_ok=True)  # it may not stand if this fails
    prompts = {
        example.id: prompt(example, predictions[example.id], judge.protocol)
        for example in examples.without_pictures()
    }
    judgements = Judgements(results / "judgements" / name / f"{cell.name}.jsonl", judge.fingerprint)
    replies = _replies(judgements, list(dict.fromkeys(prompts.values())), name, connect)
    scores = [parsing.parse(replies[asked], judge.protocol) for asked in prompts.values()]
    outcomes = [
        {
            "id": id,
            "score": math.nan if score is None else score / parsing.HIGHEST,
            "right_kind": is_of_right_kind(predictions[id], task.answer_format),
            "reply": replies[asked],
        }
        for (id, asked), score in zip(prompts.items(), scores, strict=True)
    ]
    content = {
        "task": cell.name,
        "metric": name,
        "version": version(judge),
        "value": value(scores),
        "n": len(scores),
        "right_kind": percent([o["right_kind"] for o in outcomes]),
        "stage_fingerprint": stage_fingerprint,
        "unparsable": scores.count(None),
        "judge_fingerprint": judge.fingerprint,
    }
    if judge.protocol == "as-published":
        content["published_value"] = published_value(scores)
    write_scores(out, examples, outcomes, content)


def value(scores: list[float | None]) -> float | None:
    """Return the mean, in percent, of the scores from 0 to 10 that are there; None without any."""
    parsed = [score / parsing.HIGHEST for score in scores if score is not None]
    return percent(parsed) if parsed else None


def published_value(scores: list[float | None]) -> int | None:
    """Return what CoIN's evaluate_score.py prints for scores from 0 to 10, float error included.

    None where it would have stopped with an error.
    """
    if None in scores:
        return None
    return round(sum(scores) / (10 * len(scores)) * 100.0)


def _replies(
    judgements: Judgements, prompts: list[str], name: str, connect: Callable[[], Asked]
) -> dict[str, str]:
    """Return the reply to every prompt; what was never asked is asked, and kept at once."""
    begun, known = time.monotonic(), judgements.read(prompts)
    if judgements.broken:
        print(f"{judgements.path}: {judgements.broken} broken lines are passed over", flush=True)
    missing = [asked for asked in prompts if asked not in known]
    if missing:
        about: dict[str, Any] = {"desc": name, "unit": "reply", "disable": None}
        with tqdm(total=len(prompts), initial=len(known), **about) as bar:
            for asked, reply in connect().replies(missing):
                judgements.append(asked, reply)
                bar.update()
        known = judgements.read(prompts)  # another job's reply may have come first
    print(
        f"{name} on {judgements.path.stem}: {len(missing)} of {len(prompts)} prompts asked in "
        f"{time.monotonic() - begun:.0f} s, the others known",
        flush=True,
    )
    return known


def _connect(name: str, judge: Judge, results: Path, sbatch: str) -> Asked:
    """Load a judge, or find where it is served."""
    if judge.kind == "local":
        with quickly():
            from palimpsest.judging.local import LocalJudge

        return LocalJudge(judge)
    if judge.url:
        return Endpoint(judge, judge.url)
    url = serving.find(name, judge, results, sbatch)
    return Endpoint(judge, url, serving.home(name, results) / serving.USED)

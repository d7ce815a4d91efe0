"""What can be scored without looking or reading: always the most frequent training answer."""

from __future__ import annotations

from collections import Counter
from itertools import repeat
from pathlib import Path
from typing import Any

from palimpsest.config import Task
from palimpsest.data.shards import Shards, read_manifest
from palimpsest.evaluation.score import percent, score_all
from palimpsest.metrics import metric


def chance(task: Task, dataset: Path, split: str) -> dict[str, Any]:
    """Return the score, in percent, of the most frequent training answer to every question.

    Of a task that is only asked, and has no training split, it is the most frequent answer itself.

    The answer is one to a last question, as evaluated; of several as frequent, the first in the
    alphabet. `dataset` is `…/data/<task>`. No picture is read.
    """
    known = "train" if "train" in read_manifest(dataset)["splits"] else split
    answers = Counter(e.turns[-1].answer for e in Shards(dataset, known).without_pictures())
    answer = min(answers, key=lambda a: (-answers[a], a))
    examples = Shards(dataset, split)
    scorer = (task.metric, task.metric_options)
    scores = list(score_all(repeat(answer, len(examples)), examples, scorer))
    return {
        "task": dataset.name,
        "answer": answer,
        "value": percent(scores),
        "n": len(scores),
        "metric": task.metric,
        "version": metric(task.metric).VERSION,
    }

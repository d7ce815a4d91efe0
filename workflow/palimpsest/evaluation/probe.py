"""How well a model does in the middle of a stage: a few questions of each task known so far."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

from palimpsest.config import METRIC, Probes
from palimpsest.evaluation.generate import answer
from palimpsest.evaluation.score import percent_known, scorers
from palimpsest.lineage import Stage
from palimpsest.models.lmm import LMM
from palimpsest.study import history, manner_of, method_of, scorer
from palimpsest.tasks import Examples

Probe = Callable[[LMM, int], dict[str, float]]


def probe(stage: Stage, results: Path, probes: Probes, split: str) -> Probe | None:
    """Return what asks a model that is being trained, after some steps; None if nothing can.

    Every `probes.every` steps it gives the score in percent of each task that is known before the
    stage or learnt by it, over `probes.sample` examples of the split; {} after other steps. The
    model is left as it was, and no random number is drawn: training goes on as if nothing had been
    asked. A method with a router cannot be asked, as its router is settled when a stage ends; a
    stage that learns several tasks at once, as joint tuning does, has nothing to lose, and is not
    asked.
    """
    if method_of(stage).router is not None or len(stage.lineage.last) > 1:
        return None
    asked, by_example = {}, {}
    for task in (*chain(*history(stage)), *stage.lineage.last):
        asked[task] = Examples(results, stage.benchmark, [task], split, probes.sample)
        by = scorer(stage.model, task, METRIC)
        by_example[task] = [score for _, score in scorers(asked[task].parts[0], by)]

    def asked_of(lmm: LMM, task: str) -> float | None:
        manner = manner_of(stage.model, task, "consistent")
        rows, _ = answer(lmm, asked[task], manner, probes.sample)
        given = [
            score(row["prediction"]) for score, row in zip(by_example[task], rows, strict=True)
        ]
        return percent_known(given)[0]

    def ask(lmm: LMM, step: int) -> dict[str, float]:
        if step % probes.every:
            return {}
        config, training = lmm.config, lmm.module.training
        lmm.module.eval()
        found = {task: asked_of(lmm, task) for task in asked}
        lmm.config = config
        lmm.module.train(training)
        return {task: value for task, value in found.items() if value is not None}

    return ask

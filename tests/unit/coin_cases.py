"""The cases of coin_cases.yaml and refusal_cases.yaml, and the tables that show them.

`python tests/unit/coin_cases.py` writes the tables of docs/metrics.md and docs/unlearning.md anew.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from palimpsest.metrics import Scored

HERE = Path(__file__).parent
FILES = ("coin_cases.yaml", "refusal_cases.yaml")
DOCS = HERE.parents[1] / "docs"
MARK = "<!-- Below: written by `python tests/unit/coin_cases.py` from its files of cases. -->\n"


@dataclass(frozen=True)
class Case:
    """One prediction; `scores` are the published scorer's and the corrected one's."""

    quirk: str
    prediction: str
    example: Scored
    scores: tuple[float, float]


@dataclass(frozen=True)
class Section:
    """The two scorers of a task; `options` are the corrected one's."""

    title: str
    published: str
    corrected: str
    options: dict[str, Any]
    cases: tuple[Case, ...]


def sections() -> list[Section]:
    return [_section(**raw) for file in FILES for raw in yaml.safe_load((HERE / file).read_text())]


def tables() -> str:
    """Return what stands below the mark in docs/metrics.md."""
    return "\n".join(line for section in sections() for line in _table(section))


def loose() -> str:
    """Return what stands below the mark in docs/unlearning.md: where the two readings differ."""
    (refusals,) = (section for section in sections() if section.published == "core_refusal")
    cases = [case for case in refusals.cases if case.scores[0] != case.scores[1]]
    rows = (_row(case) for case in cases)
    return "\n".join(
        [
            "\n| what it shows | answer | asked | as published | corrected |",
            "| --- | --- | --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def _section(example: dict, cases: list[dict], **names) -> Section:
    made = [_case(example, **raw) for raw in cases]
    return Section(cases=tuple(made), **names)


def _case(
    base: dict, quirk: str, prediction: str, scores: list, example: dict | None = None
) -> Case:
    scored = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (base | (example or {})).items()
    }
    return Case(quirk, prediction, Scored(**scored), tuple(scores))


def _table(section: Section) -> list[str]:
    options = f" with {json.dumps(section.options)}" if section.options else ""
    choices = section.cases[0].example.choices
    offered = f" The choices are {', '.join(choices)}." if choices else ""
    return [
        f"\n### {section.title}\n",
        f"As published `{section.published}`, corrected `{section.corrected}`{options}.{offered}\n",
        "| quirk | prediction | reference | as published | corrected |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(_row(case))} |" for case in section.cases),
    ]


def _row(case: Case) -> list[str]:
    prediction = f"`{json.dumps(case.prediction, ensure_ascii=False)}`"
    scores = ("–" if math.isnan(score) else f"{score:g}" for score in case.scores)
    return [case.quirk, prediction, _reference(case.example), *scores]


def _reference(example: Scored) -> str:
    times = Counter(example.references)
    answers = [f"{n} × `{answer}`" if n > 1 else f"`{answer}`" for answer, n in times.items()]
    picture = "{} × {}".format(*example.image_size) if example.image_size else ""
    return ", ".join(answers) + (f" in {picture}" if picture else "") + example.combination


PAGES = {"metrics.md": tables, "unlearning.md": loose}

if __name__ == "__main__":
    for page, made in PAGES.items():
        text = (DOCS / page).read_text()
        (DOCS / page).write_text(text[: text.index(MARK)] + MARK + made() + "\n")

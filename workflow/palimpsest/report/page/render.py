"""The page to look at: one HTML file that needs no network, in light and dark."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import palimpsest
from palimpsest.report.contents import Contents
from palimpsest.report.figures.style import (
    GRID,
    INK,
    MUTED,
    ON_DARK,
    ON_LIGHT,
    PAPER,
    SERIES,
    STEPS,
)
from palimpsest.report.page import cells, filters
from palimpsest.report.page.examples import Shown, lost_examples, shown_examples
from palimpsest.report.page.heat import HEAT, ON_HEAT
from palimpsest.report.page.pictures import data_uri
from palimpsest.report.paper import tables
from palimpsest.report.results import Group, Results
from palimpsest.report.sections import beside, differences, losses, refusals
from palimpsest.report.sections.beside import Comparison
from palimpsest.report.statistics.aggregates import AGGREGATES
from palimpsest.report.statistics.bootstrap import LEVEL, RESAMPLES, SEED

THEMED = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", ON_DARK: "on-high",
    ON_LIGHT: "on-low",
    **{color: f"series-{k}" for k, color in enumerate(SERIES[:6])},
    **{color: f"heat-{k}" for k, color in enumerate(HEAT["light"])},
}  # fmt: skip
CITED = re.compile(r"\[@[^\]]+\]")
UNSURE = re.compile(r"[−\d.]+ [†‡]")
SECTIONS = (
    "comparison",
    "unlearning",
    "matrix",
    "curves",
    "dynamics",
    "similarity",
    "radar",
    "losses",
    "examples",
)
# The rows of tables that sum up the others, and stay below them when these are sorted.
TOTALS = ("Mean", "Mean of the old tasks", "chance", "All, every stage once")
ZOOM = 1.5  # how much larger than in print a figure may be on the page


@dataclass(frozen=True)
class Drawn:
    """A figure as SVG text, with where it belongs and what it shows."""

    name: str
    section: str
    title: str
    caption: str
    svg: str

    @property
    def width(self) -> int:
        """The largest width on the page, in CSS pixels."""
        return round(ZOOM * 96 / 72 * float(re.search(r'width="([\d.]+)pt"', self.svg).group(1)))

    @property
    def inline(self) -> Markup:
        """The SVG for the page: its ids its own, its inks those of the page's theme."""
        return Markup(inline_svg(self.svg, self.name))


def render(found: Contents, drawn: list[Drawn], others: list[tuple[str, str]]) -> str:
    """Return the page's HTML; `others` are title and address of the pages of other measures."""
    results = found.results
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"marked": marked, "whose": filters.marker(results)}
    environment.tests["total"] = lambda row: row[0] in TOTALS
    return environment.get_template("index.html.j2").render(
        view=results.view,
        findings=refusals.findings(found.told) or findings(results),
        notes=results.notes,
        figures={s: [d for d in drawn if d.section == s] for s in SECTIONS},
        tables=found.sections,
        matrices=[
            (group, tables.matrix_table(results, group), cells.squares(group, STEPS))
            for group in (*results.sequential, *results.references)
        ],
        filters=filters.choices(results),
        behind=json.dumps(cells.behind(results), ensure_ascii=False),
        losses_said=losses.findings(found.lost),
        kinds=losses.KINDS,
        cards=[(group, cards(results, group)) for group in results.sequential],
        aggregates=AGGREGATES,
        others=others,
        files=list(found.frames),
        published=published(results, found.compared),
        explained=refusals.explained(found.told),
        provenance=provenance(results),
        bootstrap={"resamples": RESAMPLES, "level": round(100 * LEVEL), "seed": SEED},
        heat=HEAT,
        on_heat=ON_HEAT,
        image=data_uri,
    )


def published(results: Results, compared: list[Comparison]) -> list[dict[str, Any]]:
    """Return what the page says of each file of published results, and of each comparison."""
    files = list({id(one.published): one.published for one in compared}.values())
    said = []
    for file in files:
        own = [one for one in compared if one.published is file]
        shown = [
            {
                "title": f"{one.group.title} beside {one.name}",
                "table": beside.beside_table(results, one),
                "matrix": beside.beside_matrix(results, one),
                "remarks": beside.remarks(one),
                "source": f"{file.repository}: {one.theirs.source}",
            }
            for one in own
        ]
        said.append({
            "title": file.title, "reasons": beside.reasons(results, file, own), "shown": shown,
        })  # fmt: skip
    return said


def marked(text: str) -> Markup:
    """Set numbers that carry a mark of doubt apart, and keys of works without Markdown's marks."""
    text = CITED.sub(lambda cited: cited[0].strip("[]").replace("@", ""), text)
    return Markup(UNSURE.sub(r'<em class="unsure">\g<0></em>', str(escape(text))))


def inline_svg(svg: str, name: str) -> str:
    """Prepare a file's SVG for standing inside a page beside others."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for color, variable in THEMED.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.replace("<svg", f'<svg role="img" aria-labelledby="caption-{name}"', 1).strip()


def findings(results: Results) -> list[str]:
    """Return what the study found, in a sentence each."""
    needed = {"learning_accuracy", "average_accuracy", "forgetting"}
    told = [group for group in results.sequential if needed <= group.estimates.keys()]
    said = []
    for group in told[:1]:
        e = group.estimates
        said.append(
            f"{group.title} scored {tables.with_interval(e['learning_accuracy'])} % on average "
            f"right after each task, and {tables.with_interval(e['average_accuracy'])} % after the "
            f"last of {len(group.view.rows) - 1} stages: it forgot {_points(group)}."
        )
        then, now = _kinds(group)
        said.append(
            f"Its answers were of the right kind in {then:.0f} % of cases right after learning, "
            f"and in {now:.0f} % at the end."
        )
    best = min(told, key=lambda group: group.estimates["forgetting"].value, default=None)
    if best is not None and len(told) > 1:
        said.append(
            f"{best.title} forgot least: {_points(best)}, and ends at "
            f"{tables.with_interval(best.estimates['average_accuracy'])} %."
        )
        if like := differences.not_told_from(results, best, "forgetting"):
            said.append(f"By what it forgot it is not told from {', '.join(like)}.")
    return [sentence.replace(" %", "\u00a0%") for sentence in said]


def _points(group: Group) -> str:
    return f"{tables.with_interval(group.estimates['forgetting'])} points"


def _kinds(group: Group) -> tuple[float, float]:
    """Return the mean rate of answers of the right kind, after the own and the last stage."""
    learnt = np.flatnonzero(group.own_T >= 0)
    return group.kind_RT[group.own_T[learnt], learnt].mean(), group.kind_RT[-1, learnt].mean()


def cards(results: Results, group: Group) -> list[Shown]:
    """Return for each task an example of each kind of loss, or the gallery's first."""
    return [
        example
        for task in group.tasks
        for example in (
            lost_examples(results, group, task) or shown_examples(results, group, task)[:1]
        )
    ]


def provenance(results: Results) -> list[tuple[str, str]]:
    """Return what produced the report, as pairs of a word and its value."""
    view = results.view
    seeds = sorted({e.seed for e in view.experiments if e.seed is not None})
    return [
        ("study", view.name),
        ("benchmark", view.benchmark),
        ("measure", view.measure.title),
        ("models", ", ".join(dict.fromkeys(e.model for e in view.experiments))),
        (
            "orders",
            ", ".join(dict.fromkeys(group.view.order for group in results.sequential)) or "–",
        ),
        ("seeds", ", ".join(map(str, seeds)) or "–"),
        ("commit", view.commit),
        ("palimpsest", palimpsest.__version__),
    ]

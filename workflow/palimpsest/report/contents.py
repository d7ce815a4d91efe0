"""What a report says of one measure, computed once: for the page, the paper, and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import pandas as pd

from palimpsest.report.paper import paragraph, tables
from palimpsest.report.results import Results
from palimpsest.report.sections import (
    beside,
    differences,
    losses,
    orders,
    probes,
    refusals,
    similarity,
)
from palimpsest.report.sections.beside import Comparison
from palimpsest.report.sections.losses import Losses
from palimpsest.report.sections.refusals import Told


@dataclass(frozen=True)
class Contents:
    """The tables of one measure's page by their section, and what they are made of."""

    results: Results
    compared: list[Comparison]  # with published results
    told: list[Told]  # of unlearning
    lost: list[Losses]  # where forgetting comes from
    sections: dict[str, list[tables.Table]]  # in the order of the paper
    frames: dict[str, pd.DataFrame]  # the same numbers for programs

    @property
    def tables(self) -> list[tables.Table]:
        """All tables in the order of the paper."""
        return [*chain(*self.sections.values())]


def contents(measured: Sequence[Results], number: int) -> Contents:
    """Compute one of the measures; the first has what is of all measures, too."""
    results, is_front = measured[number], number == 0
    compared = beside.comparisons(results)
    told, lost = refusals.told(results, measured), losses.losses(results)
    sections = {
        "comparison": [tables.comparison_table(results)],
        "tasks": [tables.task_table(results), *tables.held_out_tables(results)],
        "matrices": [tables.matrix_table(results, group) for group in results.sequential],
        "published": beside.paper_tables(results, compared),
        "measures": tables.measure_tables(measured) if is_front else [],
        "costs": tables.cost_tables(results) if is_front else [],
        "licences": paragraph.licence_tables(results) if is_front else [],
        "losses": losses.paper_tables(results, lost),
        "unlearning": refusals.paper_tables(told),
        "differences": differences.paper_tables(results),
        "orders": orders.paper_tables(results),
        "similarity": similarity.paper_tables(results),
    }
    frames = tables.frames_of(results) | (tables.front_frames(measured) if is_front else {})
    frames |= beside.frames_of(results, compared) | losses.frames_of(results, lost)
    frames |= refusals.frames_of(results, told)
    for section in (differences, orders, similarity, probes):
        frames |= section.frames_of(results)
    return Contents(results, compared, told, lost, sections, frames)

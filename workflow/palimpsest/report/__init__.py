"""The report: cells -> accuracy matrices -> aggregates with intervals -> tables, figures, a page.

from palimpsest.report import build, terminal_table
build([view], Path("results/reports/demo"))
print(terminal_table(Path("results/reports/demo")))
"""

from palimpsest.report.build import build, terminal_table
from palimpsest.report.spec import (
    MEASURES,
    Allocation,
    ExperimentView,
    Measure,
    PublishedRef,
    RowView,
    StudyView,
    TaskView,
    by_templates,
    judged,
)

__all__ = [
    "MEASURES",
    "Allocation",
    "ExperimentView",
    "Measure",
    "PublishedRef",
    "RowView",
    "StudyView",
    "TaskView",
    "build",
    "by_templates",
    "judged",
    "terminal_table",
]

"""The report: cells -> accuracy matrices -> aggregates with intervals -> tables, figures, a page.

from palimpsest.report import build, terminal_table
build(view, Path("results/reports/demo"))
print(terminal_table(Path("results/reports/demo")))
"""

from palimpsest.report.build import build, terminal_table
from palimpsest.report.spec import Allocation, ExperimentView, RowView, StudyView, TaskView

__all__ = [
    "Allocation",
    "ExperimentView",
    "RowView",
    "StudyView",
    "TaskView",
    "build",
    "terminal_table",
]

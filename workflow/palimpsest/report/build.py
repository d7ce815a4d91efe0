"""Build a report: everything beside `index.html` first, and all of it whole or not at all."""

from __future__ import annotations

from pathlib import Path

from palimpsest.files import whole_directory
from palimpsest.report import tables
from palimpsest.report.results import Results, read_results
from palimpsest.report.spec import StudyView

TERMINAL = "forgetting.txt"


def build(view: StudyView, out: Path) -> None:
    """Write the report of a study to the directory `out`, which it replaces; ValueError names a
    cell that is missing or does not fit the others."""
    from palimpsest.report.figures import draw_all  # here, because matplotlib takes a second
    from palimpsest.report.figures.style import save
    from palimpsest.report.page import Drawn, render

    results = read_results(view)
    with whole_directory(out) as partial:
        _write_tables(results, partial)
        (partial / "figures").mkdir()
        drawn = []
        for picture in draw_all(results):
            svg = save(picture, partial / "figures")
            print(f"report {view.name}: figures/{picture.name}", flush=True)
            drawn.append(Drawn(picture.name, picture.section, picture.title, picture.caption, svg))
        (partial / "index.html").write_text(render(results, drawn), encoding="utf-8")
    print(f"report {view.name}: {out / 'index.html'}", flush=True)


def terminal_table(out: Path) -> str:
    """Return the forgetting table of a report that `build` has written."""
    path = out / TERMINAL
    if not path.is_file():
        raise ValueError(f"{path}: no report there yet; build the report first")
    return path.read_text(encoding="utf-8")


def _write_tables(results: Results, out: Path) -> None:
    tables.write_frame(tables.matrix_frame(results), out / "matrix")
    tables.write_frame(tables.matrix_frame(results, "right_kind"), out / "right_kind")
    tables.write_frame(tables.summary_frame(results), out / "summary")
    tables.write_frame(tables.task_frame(results), out / "tasks")
    costs = tables.cost_frame(results)
    if costs is not None:
        tables.write_frame(costs, out / "costs")
    (out / "tables").mkdir()
    for table in tables.paper_tables(results):
        (out / f"tables/{table[0]}.md").write_text(tables.markdown(table), encoding="utf-8")
        (out / f"tables/{table[0]}.tex").write_text(tables.latex(table), encoding="utf-8")
    (out / TERMINAL).write_text(tables.terminal(results), encoding="utf-8")

"""Build a report: everything beside `index.html` first, and all of it whole or not at all."""

from __future__ import annotations

from pathlib import Path

from palimpsest.files import whole_directory
from palimpsest.report.spec import StudyView

TERMINAL = "forgetting.txt"


def build(view: StudyView, out: Path) -> None:
    """Write the report of a study to the directory `out`, which it replaces; ValueError names a
    cell that is missing or does not fit the others."""
    # Imported here: pandas and matplotlib take seconds, and others only name what a report reads.
    from palimpsest.report.figures import draw_all
    from palimpsest.report.figures.style import save
    from palimpsest.report.page import Drawn, render
    from palimpsest.report.results import read_results
    from palimpsest.report.tables import terminal, write_tables

    results = read_results(view)
    with whole_directory(out) as partial:
        write_tables(results, partial)
        (partial / TERMINAL).write_text(terminal(results), encoding="utf-8")
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

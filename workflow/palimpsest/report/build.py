"""Build a report: everything beside `index.html` first, and all of it whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.files import whole_directory, write_json
from palimpsest.report import traces
from palimpsest.report.spec import StudyView

if TYPE_CHECKING:
    from palimpsest.report.results import Results

TERMINAL = "forgetting.txt"


def build(views: Sequence[StudyView], out: Path) -> None:
    """Write the report of a study to the directory `out`, which it replaces.

    The views are of the same cells, each by another measure: the first is the front page, each
    other one a page of its own in a directory of its measure's name. ValueError names a cell that
    is missing or does not fit the others.
    """
    from palimpsest.report.results import read_results

    measures = [view.measure.name for view in views]
    if len({*measures, "figures", "tables"}) != len(measures) + 2:
        raise ValueError(
            f"measures {', '.join(measures)}: each names a directory of the report, so they must "
            "differ, and from `figures` and `tables`"
        )
    measured = [read_results(view) for view in views]
    with whole_directory(out) as partial:
        for number, name in enumerate(measures):
            _write_page(measured, number, partial / name if number else partial)
        write_json(partial / traces.FILE, traces.traces(views[0]))
    print(f"report {views[0].name}: {out / 'index.html'}", flush=True)


def _write_page(measured: list[Results], number: int, out: Path) -> None:
    """Write one measure's page, tables and figures; the first also what is of all measures."""
    # Imported here: pandas and matplotlib take seconds, and others only name what a report reads.
    from palimpsest.report.contents import contents
    from palimpsest.report.figures import draw_all
    from palimpsest.report.figures.style import COLUMN, save
    from palimpsest.report.page.render import Drawn, render
    from palimpsest.report.paper import latex, paragraph
    from palimpsest.report.paper.tables import write_tables
    from palimpsest.report.terminal import terminal

    found, view = contents(measured, number), measured[number].view
    (out / "figures").mkdir(parents=True)
    write_tables(found.frames, found.tables, out)
    (out / TERMINAL).write_text(terminal(found.results), encoding="utf-8")
    drawn, figures = [], []
    for picture in draw_all(found):
        svg = save(picture, out / "figures")
        print(f"report {view.name}: figures/{picture.name}", flush=True)
        if picture.section:
            drawn.append(Drawn(picture.name, picture.section, picture.title, picture.caption, svg))
            wide = picture.figure.get_figwidth() > COLUMN
            figures.append((picture.name, picture.caption, wide))
    page = render(found, drawn, _others(measured, number))
    (out / "index.html").write_text(page, encoding="utf-8")
    if number == 0 and view.setting:
        paragraph.write(found.results, out)
        document = latex.document(view, found.tables, figures)
        (out / "report.tex").write_text(document, encoding="utf-8")


def _others(measured: list[Results], number: int) -> list[tuple[str, str]]:
    """Return title and relative address of the pages of the same cells by the other measures."""
    up = "../" if number else ""
    return [
        (one.view.measure.title, f"{up}{one.view.measure.name + '/' if k else ''}index.html")
        for k, one in enumerate(measured)
        if k != number
    ]


def terminal_table(out: Path) -> str:
    """Return the forgetting table of a report that `build` has written, by its first measure."""
    path = out / TERMINAL
    if not path.is_file():
        raise ValueError(f"{path}: no report there yet; build the report first")
    return path.read_text(encoding="utf-8")

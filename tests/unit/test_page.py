"""The page in a browser: sorted, filtered, a cell opened, and nothing to complain about."""

from __future__ import annotations

import base64
import io
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from palimpsest.report import build, figures
from palimpsest.report.figures import heatmap, losses
from palimpsest.report.page.pictures import SIDE, data_uri
from report_fixture import NAMES, TASKS, write_study

CHROMIUM = shutil.which("chromium")
# Without these Chromium asks the network for this and that, and does not start as root.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 850}
PAPER = {"light": "rgb(253, 253, 252)", "dark": "rgb(17, 22, 28)"}
EVIL = "</script><script>alert(1)</script><!-- & \u2028"
in_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: tests/install.sh")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two methods and two seeds, with few of its figures, which take the longest."""
    root = tmp_path_factory.mktemp("page")
    view = write_study(root / "results", n=20, seeds=(0, 1), methods=("lora", "replay"))
    answer(view.experiments[4].rows[2].cells[NAMES[2]], EVIL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_all", some_figures)
        build([view], root / "out")
    return view, root / "out/index.html"


def answer(cell, said):
    """Change every answer of a cell."""
    path = cell.parent / "predictions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "prediction", pa.array([said] * len(table))), path)


def some_figures(found):
    return [*heatmap.draw(found.results), next(losses.draw(found.results, found.lost))]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, report):
    """Open the page, in a window and a theme; until the test ends it may not complain of a thing.

    Nor may it ask for anything but itself.
    """
    address, contexts, complaints = report[1].as_uri(), [], []

    def opened(mark="", viewport=WIDE, color_scheme="light", **settings):
        context = browser.new_context(
            viewport=viewport, color_scheme=color_scheme, reduced_motion="reduce", **settings
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url.split("#")[0]))
        page.goto(address + mark)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [said for said in complaints if said != address and said[:5] != "data:"] == []


@in_browser
def test_a_column_sorts_its_table(visit):
    table = visit().locator("#tables table").first
    head = table.locator("thead th", has_text="Sequential LoRA")
    column = head.evaluate("head => head.cellIndex") + 1

    def ends():
        texts = table.locator(f"tbody td:nth-child({column})").all_inner_texts()
        return [float(text.split("→")[1]) for text in texts]

    original = ends()
    turns = {"ascending": sorted(original), "descending": sorted(original)[::-1], None: original}
    assert len({*map(tuple, turns.values())}) == 3
    for direction, expected in turns.items():
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == direction
        assert ends() == expected
    assert table.locator("tfoot th").inner_text() == "Mean"


@in_browser
def test_numbers_sort_by_value_and_nothing_comes_last(visit):
    page = visit()
    script = """texts => {
        const table = document.querySelector("#tables table"), rows = [...table.tBodies[0].rows];
        rows.forEach((row, k) => { row.cells[2].textContent = texts[k] ?? "–"; });
        const button = table.tHead.rows[0].cells[2].querySelector("button");
        button.click();
        const sorted = [...table.tBodies[0].rows].map((row) => row.cells[2].textContent);
        button.click();
        button.click();
        return sorted.slice(0, texts.length - 1);
    }"""
    for texts in (
        ["−2.0 [−3.1, 0.4]", "9.5 [2, 99]", "10.5 [9, 12]"],
        ["0:59:59", "1:00:00", "10:00:00"],
        ["< 0.01", "≤ 4", "30", "1,200"],
        ["60.0 → 9.5 [8, 99]", "1.0 → 2.0 → 10.0 [1, 2]"],
        ["a 9", "a 10", "b 1"],
    ):
        assert page.evaluate(script, [*texts[::-1], ""]) == texts


@in_browser
def test_what_is_chosen_is_left_and_the_address_keeps_it(visit):
    page = visit()
    form = page.get_by_role("form", name="Filter by method and task")
    assert "6 of 6 experiments and 8 of 8 tasks" in form.get_by_role("status").inner_text()
    for label in ("Replay 30 %", "Reading", "Card"):
        form.get_by_label(label).check()
    mark = "#show:method=replay&task=demo-reading&task=demo-card"
    assert page.url.endswith(mark)
    for seen in (page, visit(mark)):
        assert "1 of 6 experiments and 2 of 8 tasks" in seen.locator("#shown").inner_text()
        table = seen.locator("#tables table").first
        heads = [
            text.strip("\xa0↕") for text in table.locator("thead th:visible").all_inner_texts()
        ]
        assert heads == ["task", "metric", "n", "chance", "Replay 30 %"]
        assert table.locator("tbody tr:visible th").all_inner_texts() == ["Reading", "Card"]
        assert seen.locator("figure.heatmap-replay").is_visible()
        assert not seen.locator("figure.heatmap-lora").is_visible()
        matrix = seen.locator("#matrices details:visible")
        assert matrix.count() == 1
        matrix.locator("summary").click()
        assert matrix.locator("tbody td:visible").count() == 2 * 9  # after all stages
    page.get_by_role("link", name="Tables", exact=True).click()  # the choice stays
    assert not page.locator("figure.heatmap-lora").is_visible()
    form.get_by_role("button", name="Show all").click()
    expect(page.locator("#shown")).to_contain_text("6 of 6 experiments and 8 of 8 tasks")
    assert "#" not in page.url
    assert page.locator("figure.heatmap-lora").is_visible()


@in_browser
def test_a_cell_opens_by_the_keyboard_and_closes_again(visit, report):
    page = visit()
    matrix = page.locator("table.matrix").first
    matrix.locator("td button").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    focused = page.locator(":focus")
    assert re.fullmatch(r"[\d.]+, Reading after Reading", focused.get_attribute("aria-label"))
    assert matrix.locator("td button[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Sequential LoRA: Reading after Reading")
    value = dialog.locator("#cell-value").inner_text()
    assert re.match(r"[\d.]+ \[[\d.]+, [\d.]+\] %, of 20 test examples", value)

    dialog.locator("summary", has_text="Seed 1").click()
    paths = dialog.locator("code").all_inner_texts()
    rows = [e.rows[2] for e in report[0].experiments if e.name == "lora"]
    for row, own in zip(rows, (paths[:6], paths[6:]), strict=True):
        cell, log = row.cells[NAMES[1]], row.logs[NAMES[1]]
        files = [cell.parent / "predictions.parquet", cell / "scores.json", log]
        assert own == [str(path) for path in (*files, row.record.parent, row.record, row.log)]

    cards = dialog.locator("#cell-examples li")
    assert cards.count() == 6
    assert cards.first.locator("img").evaluate("image => image.naturalWidth") == 48
    assert TASKS[1][8] in cards.first.inner_text()
    marks = {text[0] for text in dialog.locator("dd.right, dd.wrong").all_inner_texts()}
    assert marks <= {"✓", "✗"}
    assert "✓" in marks

    dialog.get_by_role("button", name="Copy the path: predictions").first.click()
    expect(dialog.get_by_role("status")).to_contain_text("predictions.parquet")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert focused.get_attribute("aria-label").endswith("Reading after Reading")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert EVIL.strip() in page.locator("#cell-examples").inner_text()


@in_browser
@pytest.mark.parametrize(("viewport", "theme"), [(WIDE, "dark"), (NARROW, "light")])
def test_nothing_is_wider_than_the_window(visit, viewport, theme):
    page = visit(viewport=viewport, color_scheme=theme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.locator("table.matrix td button").nth(9).click()
    dialog = page.get_by_role("dialog")
    assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    dialog.get_by_role("button", name="Close").click()
    for expected in (theme, *({*PAPER} - {theme})):
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[expected]
        page.get_by_role("button", name="Switch between light and dark").click()


@in_browser
def test_axe_finds_it_accessible(visit):
    assert violations(visit()) == []
    dark = visit(color_scheme="dark")
    assert violations(dark, "#matrices") == []
    dark.locator("table.matrix td button").first.click()
    assert violations(dark, "#cell") == []


def violations(page, part=None) -> list[str]:
    """Return what axe-core finds at fault in a page or a part, with the first element of each."""
    found = Axe().run(page, part).response
    assert found["passes"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found["violations"]]


@in_browser
def test_without_scripts_all_is_still_there(visit):
    page = visit(java_script_enabled=False)
    assert not page.locator("#filter").is_visible()
    assert page.locator("figure.heatmap-lora svg").is_visible()
    assert page.locator("table.matrix td[data-cell]").first.inner_text() == "0.0"


def test_a_large_picture_is_made_smaller_and_a_small_one_is_kept():
    large, small = (drawn(size) for size in ((SIDE * 4, SIDE * 2), (SIDE, 9)))
    kind, _, data = data_uri(large).partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert (kind, picture.size) == ("data:image/jpeg", (SIDE, SIDE // 2))
    assert data_uri(small) == f"data:image/png;base64,{base64.b64encode(small).decode()}"


def drawn(size) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", size, "teal").save(out, "PNG")
    return out.getvalue()

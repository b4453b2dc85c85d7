"""Report pages in a real browser: short before they are unfolded, drawn whole, sorted, accessible, asking nobody."""

import html
import os
from pathlib import Path

import pytest
from browser import needs_browser, visit
from runs_by_hand import DISHES, SANDING, SORTING, build_run, report


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return report(build_run(tmp_path_factory.mktemp("runs") / "full"))


UNFOLDED = """[...document.querySelectorAll("details")].map((fold) => { fold.open = true; }) && """
LAID_OUT = """{
  width: innerWidth,
  content: document.documentElement.scrollWidth,
  ground: getComputedStyle(document.body).backgroundColor,
  images: document.images.length,
  broken: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.alt),
  flat: [...document.querySelectorAll("svg, img, table")].filter((element) => {
    const {width, height} = element.getBoundingClientRect();
    return element.checkVisibility() && (width < 10 || height < 10);
  }).map((element) => element.outerHTML.slice(0, 80)),
  unnamed: [...document.querySelectorAll("figure")].filter((figure) =>
    ![...figure.querySelectorAll(".unit, .under span")].some((label) => label.textContent)).length,
  empty: [...document.querySelectorAll(".plot svg")].filter((svg) => !svg.querySelector("path[d^=M]")).length,
}"""


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_a_browser_draws_every_figure_logs_nothing_and_asks_nobody(full, tmp_path, width, dark):
    found, console, asked = visit(tmp_path / "browser", full.html, UNFOLDED + LAID_OUT, width=width, dark=dark)
    assert (console, asked) == ([], [])
    assert (found["width"], found["images"]) == (width, 8)
    assert found["content"] <= width, "nothing is wider than the window"
    assert (found["broken"], found["flat"], found["empty"], found["unnamed"]) == ([], [], 0, 0)
    assert found["ground"] == ("rgb(18, 21, 24)" if dark else "rgb(251, 251, 249)")


@needs_browser
@pytest.mark.parametrize(("work", "pictures"), [(SANDING, 2), (SORTING, 16)])
@pytest.mark.parametrize(("width", "dark"), [(1280, True), (500, False)])
def test_pages_of_other_tasks_are_drawn_as_well(tmp_path, work, pictures, width, dark):
    page = report(build_run(tmp_path / "run", work, episodes=40))
    found, console, asked = visit(tmp_path / "browser", page.html, UNFOLDED + LAID_OUT, width=width, dark=dark)
    assert (console, asked) == ([], [])
    assert found["images"] == pictures and found["content"] <= width
    assert (found["broken"], found["flat"], found["empty"], found["unnamed"]) == ([], [], 0, 0)


def on_a_phone(page, script):
    """A page that holds the other in a frame of a phone's size, which a window cannot have; script: within it."""
    frame = f'<iframe style="width:390px;height:844px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    return (
        f"<!doctype html><html><body>{frame}</body></html>",
        f"""((document, innerWidth) => {script})(
      window.frames[0].document, window.frames[0].innerWidth)""",
    )


HEIGHT = """{
  height: document.documentElement.scrollHeight, width: document.documentElement.scrollWidth,
  open: document.querySelectorAll("details[open]").length,
}"""


@needs_browser
@pytest.mark.parametrize("work", [DISHES, SANDING, SORTING], ids=lambda work: work["task"])
def test_a_page_is_short_until_it_is_unfolded(tmp_path, work):
    page = report(build_run(tmp_path / "run", work, episodes=40)).html
    desktop, _, _ = visit(tmp_path / "desktop", page, HEIGHT)
    phone, console, asked = visit(tmp_path / "phone", *on_a_phone(page, f"({HEIGHT})"))
    assert (console, asked) == ([], [])
    assert desktop["open"] == phone["open"] == 0
    assert desktop["height"] <= 5000 and phone["height"] <= 8 * 844
    assert phone["width"] <= 390


@needs_browser
def test_one_button_unfolds_and_folds_all(full, tmp_path):
    script = """(() => {
      const button = document.querySelector(".unfold"), count = () => document.querySelectorAll("details[open]").length;
      const found = [count()];
      for (let i = 0; i < 2; i++) { button.click(); found.push(count(), button.textContent); }
      return found;
    })()"""
    found, _, _ = visit(tmp_path / "browser", full.html, script)
    folds = full.html.count("<details")
    assert found == [0, folds, "Fold all", 0, "Unfold all"]


AXE = os.environ.get("AXE_CORE", "")  # axe.min.js of the npm package axe-core


@needs_browser
@pytest.mark.skipif(not AXE, reason="AXE_CORE does not name the axe.min.js of the npm package axe-core")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(full, tmp_path, dark):
    page = full.html.replace("</main>", f"</main><script>{Path(AXE).read_text()}</script>")
    faults = "axe.run().then((found) => [found.passes.length, found.violations.map((one) => [one.impact, one.id])])"
    for state, script in (("folded", faults), ("unfolded", UNFOLDED + faults)):
        (passed, found), _, _ = visit(tmp_path / state, page, script, dark=dark)
        assert passed > 20
        assert [one for one in found if one[0] in ("serious", "critical")] == []


@needs_browser
def test_every_table_sorts_in_a_browser(full, tmp_path):
    """Each head once: numbers rise, texts are in order, and what is not known comes last."""
    click = """[...document.querySelectorAll("table.sortable")].map((table) =>
      [...table.tHead.rows[0].cells].map((head, column) => {
        head.querySelector("button").click();
        const numeric = head.classList.contains("number");
        const keys = [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.key);
        const known = keys.filter((key) => key !== "").map((key) => numeric ? Number(key) : key);
        const compare = (a, b) => numeric ? a - b : a.localeCompare(b);
        const rising = known.every((key, i) => !i || compare(known[i - 1], key) <= 0);
        return [head.getAttribute("aria-sort"), keys.length, rising, keys.lastIndexOf("") < 0 || keys.at(-1) === ""];
      }))"""
    tables, console, _ = visit(tmp_path / "browser", full.html, click)
    assert console == []
    assert [len(heads) for heads in tables] == [10, 12, 5, 3], "contexts, periods, values, failures"
    assert all(head == ["ascending", head[1], True, True] and head[1] > 0 for heads in tables for head in heads)


@needs_browser
def test_the_browser_would_tell_of_errors_and_requests(tmp_path):
    page = "<body><img src='http://example.org/a.png'><script>undefinedFunction()</script></body>"
    found, console, asked = visit(tmp_path / "browser", page, "[...document.images].map((i) => i.naturalWidth)")
    assert found == [0]
    assert asked == ["http://example.org/a.png"]
    assert len([line for line in console if "undefinedFunction is not defined" in line]) == 1

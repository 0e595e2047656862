"""The page in Chromium, opened from its file: Debian's, because Playwright's own is a download of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl.verbs.report import report
from rollout.store.reading import FOLDER
from rollout.store.segments import Segment
from rollout.types import Group, Task
from tests.rl.report.made_run import make_run, member
from tests.samples import failed_trajectory

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing; install it, e.g. apt-get install chromium"),
]
SIZES = [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: of one run, of two, of a sample, and of a run that goes on."""
    folder = tmp_path_factory.mktemp("runs")
    one, other = make_run(folder / "one", name="one"), make_run(folder / "other", name="other", steps=3)
    going = make_run(folder / "going", name="going", summary=False)
    many = make_run(folder / "many", name="many", steps=4, groups=60)
    asked = {"one": [one], "two": [one, other], "going": [going], "many": [many], "sample": [many, "limit_mb=0.02"]}
    for name, arguments in asked.items():
        assert report([*map(str, arguments), f"out={folder}/{name}.html"]) == 0
    return {name: folder / f"{name}.html" for name in asked}


class Opened:
    """A page, and what went wrong in it."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light", part: str = "") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._requested(request.url))
        self.page.goto(path.as_uri() + part)

    def _requested(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(f"the page asked for {url}")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *failure: object) -> None:
        self.context.close()
        assert not self.wrong or failure[0] is not None, self.wrong


def texts(page: Any, selector: str) -> list[str]:
    found: list[str] = page.locator(selector).all_inner_texts()
    return found


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_view_fits_its_screen_and_can_be_read(
    browser: Any, pages: dict[str, Path], width: int, scheme: str
) -> None:
    with Opened(browser, pages["two"], width, scheme) as page:
        for key in "1234":
            page.keyboard.press(key)
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        for foreground in ("--text", "--dim", "--accent", "--good", "--bad"):
            for background in ("--back", "--raised"):
                assert page.evaluate(CONTRAST, [foreground, background]) >= 4.5, (foreground, background)


CONTRAST = """([one, other]) => {
  const light = (name) => {
    const [r, g, b] = colour(name).match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16) / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""


def test_curves_come_in_sections_and_are_read_by_keys(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as page:
        assert texts(page, "#view-curves summary") == ["Learning", "Memory"]
        chart = page.locator("figure").first
        assert "reward/mean" in chart.inner_text() and "last 0.5" in chart.inner_text()
        chart.focus()
        page.keyboard.press("ArrowLeft")
        assert "step 2: 0.5" in chart.inner_text()
        page.keyboard.press("ArrowLeft")
        assert "step 1: 0.25" in chart.inner_text()
        assert "finished, 2 steps, 61.0 s, held-out success 25 % → 50 %" in page.locator("#runs").inner_text()


def test_two_runs_share_charts_and_stand_beside_each_other(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["two"]) as page:
        first = page.locator("figure").first
        assert first.locator("polyline").count() == 2 and first.locator(".value .swatch").count() == 2
        page.keyboard.press("3")
        page.get_by_label("Run", exact=True).select_option("1")
        assert "6 groups" in page.locator(".list [role=status]").inner_text()
        page.get_by_label("Run", exact=True).select_option("0")
        page.locator(".list li button").first.click()
        page.get_by_label("Another attempt").select_option(label="other, step 1, mean 0.5")
        page.locator("article section h2").nth(1).wait_for()
        assert page.locator("article .member").count() == 6


def test_a_timeline_tells_what_was_waited_for(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as page:
        page.keyboard.press("2")
        page.locator("canvas").focus()
        page.keyboard.press("ArrowRight")
        told = page.locator(".readout")
        assert told.inner_text() == "step 1: waits for rollouts, 6.00 s, from 40.0 s on · 3 of 4 groups"
        page.keyboard.press("ArrowRight")
        assert told.inner_text().startswith("step 1: trains, 3.00 s")
        page.locator("#view-timeline summary").click()
        assert texts(page, "tbody tr")[0].split("\t") == ["starting Ray", "1", "30.0 s", "30.0 s", "50.8 %"]
        painted = "document.querySelector('canvas').getContext('2d').getImageData(200, 60, 900, 60).data.some((v) => v)"
        assert page.evaluate(painted)


def test_groups_are_found_by_filters_and_words(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["many"]) as page:
        page.keyboard.press("3")
        count = page.locator(".list [role=status]")
        assert count.inner_text() == "240 groups, 720 trajectories"
        assert page.locator(".list li").count() == 200
        page.get_by_text("Show more", exact=True).click()
        assert page.locator(".list li").count() == 240
        page.get_by_label("Trained").select_option("eval")
        assert count.inner_text().startswith("1 group,")
        page.get_by_label("Trained").select_option("all")
        page.get_by_label("from step").fill("3")
        page.get_by_label("to step").fill("3")
        assert count.inner_text().startswith("60 groups")
        page.get_by_label("Search").fill("UNMISTAKABLE")
        page.locator("article mark").first.wait_for()
        assert count.inner_text().startswith("60 groups")
        page.get_by_label("Search").fill("task-7")
        page.wait_for_function("parts.listed.length === 1")
        for shown in ('"sum": [', "calculator", "lone surrogate"):
            page.get_by_label("Search").fill(shown)
            page.locator("article mark").first.wait_for()
            assert count.inner_text().startswith("60 groups"), shown
        page.get_by_label("Search").fill("assistant")  # the role is no part of what was said
        page.wait_for_function("parts.listed.length === 0")
        page.get_by_label("Search").fill("the sandbox is gone")
        page.wait_for_function("parts.listed.length === 60")
        page.get_by_label("Search").fill("nothing says this")
        page.wait_for_function("parts.listed.length === 0")


def test_tokens_are_coloured_and_tell_their_numbers(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as page:
        page.keyboard.press("3")
        page.get_by_role("button", name="Tokens").click()
        member = page.locator(".member").first
        member.locator(".tokens span").first.wait_for()
        assert texts(member, ".tokens span.sampled") == ["three", "⏎\n"]
        page.get_by_label("Colour tokens by").select_option("advantage")
        page.get_by_text("full colour: 1.5").first.wait_for()
        member = page.locator(".member").first
        styles = [span.get_attribute("style") for span in member.locator(".tokens span.sampled").all()]
        assert "--tint-up" in styles[0] and "--tint-down" in styles[1]
        observed = member.locator(".tokens span:not(.sampled)")
        assert all(span.get_attribute("style") is None for span in observed.all())
        member.locator(".tokens span.sampled").nth(1).hover()
        assert page.locator(".readout-bar").inner_text() == (
            'position 6 · token 7 "\\n" · sampled by version 0 · logprob -2 · advantage -1.5 · ratio 2.71828'
        )
        box = page.locator(".readout-bar").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 900
        for mode, legend in (("version", "all sampled by version 0"), ("logprob", "the redder"), ("ratio", "nats")):
            page.get_by_label("Colour tokens by").select_option(mode)
            page.get_by_text(legend).first.wait_for()


def test_it_can_be_used_by_the_keyboard_alone(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("3")
        page.keyboard.press("j")
        page.wait_for_function("state.group === parts.listed[1]")
        page.keyboard.press("k")
        page.wait_for_function("state.group === parts.listed[0]")
        page.keyboard.press("t")
        page.locator(".tokens").first.focus()
        page.keyboard.press("ArrowRight")
        assert "position 0" in page.locator(".readout-bar").inner_text()
        page.keyboard.press("c")
        page.wait_for_function("state.mode === 'advantage'")
        page.keyboard.press("l")
        page.locator("dialog").get_by_text("in step 1").first.wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        page.locator("dialog").get_by_text("next and previous group").first.wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("/")
        page.keyboard.type("123")
        assert page.get_by_label("Search").input_value() == "123"


def test_what_a_model_wrote_is_text(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as page:
        page.keyboard.press("3")
        page.get_by_text("onerror").first.wait_for()
        assert page.title() == "one · Sluice report" and page.locator("article img").count() == 0


def test_a_sample_and_a_run_that_goes_on_say_so(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["sample"]) as page:
        page.keyboard.press("3")
        assert "this page holds each 32nd group, 8 of 241" in page.locator(".notice").inner_text()
    with Opened(browser, pages["going"]) as page:
        assert "goes on, or was killed" in page.locator("#runs").inner_text()


def test_a_link_to_a_group_opens_it(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"], part="#trajectories/0/1-3") as page:
        page.locator("article .dim", has_text="record 3").wait_for()
        assert page.locator(".list button[aria-current=true]").count() == 1


def test_the_last_of_quick_choices_is_what_is_shown(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["two"]) as page:
        page.keyboard.press("3")
        for _ in range(5):
            page.keyboard.press("t")
        page.wait_for_timeout(300)
        pressed = page.get_by_role("button", name="Tokens").get_attribute("aria-pressed")
        assert pressed == "true" and page.locator("article .tokens").count() > 0
        beside = page.get_by_label("Another attempt")
        for value in ("0", "", "1", ""):
            beside.select_option(value)
        page.wait_for_timeout(300)
        assert page.locator("article h2").count() == 1
        for _ in range(3):
            page.keyboard.press("j")
        page.wait_for_timeout(300)
        assert page.locator("article h2").inner_text() == page.locator(".list [aria-current] .task").inner_text()


def test_a_choice_keeps_the_focus_and_the_place(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as page:
        page.keyboard.press("3")
        page.get_by_role("button", name="Tokens").focus()
        page.keyboard.press("Enter")
        page.locator("article .tokens span").first.wait_for()
        assert page.evaluate("document.activeElement.textContent") == "Tokens"
        page.locator(".members").evaluate("one => { one.scrollLeft = 20; }")
        mode = page.get_by_label("Colour tokens by")
        mode.focus()
        for wanted in ("advantage", "ratio"):
            page.keyboard.press("ArrowDown")
            page.wait_for_function(f"state.mode === '{wanted}'")
        assert page.evaluate("document.activeElement.tagName") == "SELECT"
        assert page.locator(".members").evaluate("one => one.scrollLeft") == 20


def test_a_page_that_is_still_read_opens_what_is_asked(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """The parts of the groups are kept back until somebody has asked for the first one."""
    text = pages["one"].read_text()
    place = text.index('<script type="text/plain" id="ledger-0"')
    slow = "<script>openGroup(parts.listed[0], false); openGroup(parts.listed[1], false)</script>"
    (tmp_path / "slow.html").write_text(text[:place] + slow + text[place:])
    with Opened(browser, tmp_path / "slow.html", part="#trajectories") as page:
        page.locator("article h2").wait_for()
        assert page.locator("article h2").inner_text() == "task-1"
        page.keyboard.press("k")
        page.wait_for_function("document.querySelector('article h2').textContent === 'task-0'")


def test_addresses_are_followed_and_kept(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["many"], part="#trajectories/0/1-0") as page:
        page.locator("article .dim", has_text="evaluation of version 0").wait_for()
        page.evaluate("location.hash = '#trajectories/0/1-235'")
        page.locator("article .dim", has_text="record 235").wait_for()
        assert page.locator(".list [aria-current]").count() == 1
        page.keyboard.press("1")
        assert page.evaluate("location.hash") == "#curves"
        page.keyboard.press("3")
        assert page.evaluate("location.hash") == "#trajectories/0/1-235"
        page.evaluate("location.hash = '#toString'")
        page.locator("figure").first.wait_for()


def test_odd_content_and_long_names_fit(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name="n" * 200, steps=1, groups=1)
    long = {"role": "assistant", "content": "w" * 3000, "tool_calls": [{"name": "unwrapped", "arguments": {}}]}
    odd = replace(member("g9", "three", float(10**9), 0), messages=(long,), reward_parts={"p" * 200: 1.0})
    lost = failed_trajectory("t" * 300, "g8", "e" * 400)
    segment = Segment(run / FOLDER)
    for members in ((odd,) * 16, (lost, lost)):
        task = Task(
            id="t" * 300, environment="reasoning", source="s" * 100, messages=({"role": "user", "content": "why"},)
        )
        segment.append(Group(id="g", task=task, trajectories=members), "train")
    assert report([str(run)]) == 0
    for width in (1280, 400):
        with Opened(browser, run / "report.html", width, part="#trajectories") as page:
            page.get_by_label("Trained").select_option("not")
            for place in (0, 1):
                page.locator(".list li button").nth(place).click()
                page.locator("article h2", has_text="ttt").wait_for()
                for key in "tt":
                    page.keyboard.press(key)
                    page.wait_for_timeout(150)
                    assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.get_by_label("Search").fill("unwrapped")
            page.wait_for_function("parts.listed.length === 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_strongest_colours_leave_tokens_readable(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    with Opened(browser, pages["one"], scheme=scheme) as page:
        for name in ("sampled", "up", "down", "age"):
            assert page.evaluate(TINTED, name) >= 4.5, name


TINTED = """(name) => {
  const hex = (value) => colour(value).match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
  const alpha = 0.08 + Number(colour('--tint-most')), tint = colour(`--tint-${name}`).split(',').map(Number);
  const back = hex('--raised').map((part, i) => alpha * tint[i] + (1 - alpha) * part);
  const light = (rgb) => rgb.map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const [low, high] = [light(hex('--text')), light(back)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""

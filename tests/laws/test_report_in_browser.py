"""The report in a real browser: it draws its curves, and does what its controls say.

Needs Chromium or Chrome on the machine; nothing is downloaded.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flame_accel.observe.evaluations_file import Evaluation, EvaluationsFile
from flame_accel.observe.metrics_file import MetricsFile
from flame_accel.observe.report import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOSTILE = "</script><img src=x onerror=alert(1)>"
STEPS = 60


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # a container's root has no sandbox; the pages are ours
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of one run, of two runs, and of one that has just begun."""
    folder = tmp_path_factory.mktemp("reports")
    runs = [folder / "first", folder / "second"]
    for number, run in enumerate(runs, 1):
        run.mkdir()
        metrics = MetricsFile(run / "metrics.jsonl")
        for step in range(1, STEPS // number + 1):
            metrics.append(
                {
                    "step": step,
                    "tokens": 1000 * step,
                    "train/loss": math.nan if step == 7 else 5.0 / step**0.5 + number,
                    "optimizer/lr": 1e-3,
                    "optimizer/grad_norm": 1.0 + step % 5,
                    "time/step_seconds": 2.0,
                    "throughput/tokens_per_second_per_device": 500.0,
                    "throughput/tflops_per_device": 5.0,
                    "data/share/books": 0.75,
                    "data/share/code": 0.25,
                    HOSTILE: step,
                }
                | ({"eval/loss": 4.0 / step} if step % 10 == 0 else {})
            )
        EvaluationsFile(run).append(
            Evaluation(
                *(STEPS, STEPS, "set", HOSTILE, {"loss": 2.0}),
                by_position={"edges": [0, 32, 64, 128], "loss": [3.0, 2.5, 2.0 + number]},
                samples=[{"prompt": "def ", "text": HOSTILE}],
            )
        )
        starts = [{"step": 0, "changed_options": []}, {"step": 30, "changed_options": []}]
        (run / "environment.json").write_text(json.dumps({"device": HOSTILE, "starts": starts}))
        (run / "skipped.jsonl").write_text('{"step": 7, "reason": "its loss is nan"}\n')
    probe = folder / "probe"
    probe.mkdir()
    metrics = MetricsFile(probe / "metrics.jsonl")
    for step in range(1, STEPS + 1):
        metrics.append({"step": step, "train/loss": 5.0 / step})
    last = {"eval/loss": 2.0, "eval/perplexity": 250.0}
    last |= {"eval/recall/answer_accuracy": 0.0, "eval/recall/accuracy": 1.0}
    metrics.append({"step": STEPS} | last)
    EvaluationsFile(probe).append(
        Evaluation(
            *(STEPS, STEPS, "probe", "recall", {"loss": 2.0}),
            by_position={
                "edges": [0, 32, 64, 128],
                "loss": [math.nan, 2.5, 2.0],
                "accuracy": [math.nan, 0.0, 0.0],
            },
        )
    )
    (folder / "empty").mkdir()
    paths = {name: folder / f"{name}.html" for name in ("one", "two", "probe", "empty")}
    write_page(runs[:1], paths["one"], title=HOSTILE)
    write_page(runs, paths["two"])
    write_page([probe], paths["probe"])
    write_page([folder / "empty"], paths["empty"])
    return paths


@pytest.fixture
def show(browser: "Browser", pages: dict[str, Path]) -> Iterator[object]:
    """`show("one", **options)`: an open page, once it is drawn, which must log nothing."""
    contexts = []
    told: list[str] = []

    def open_page(name: str, **options: object) -> "Page":
        context = browser.new_context(**({"viewport": {"width": 1100, "height": 900}} | options))  # type: ignore[arg-type]
        contexts.append(context)
        # any other address would be the network
        context.route(lambda url: not url.startswith("file:"), lambda route: told.append("network"))
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.goto(pages[name].as_uri())
        page.wait_for_selector("html[data-drawn]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert told == []


def chart(page: "Page", title: str):
    """The figure of a chart."""
    return page.locator("figure", has=page.get_by_role("heading", name=title, exact=True))


def lines(page: "Page", title: str) -> list[str]:
    """The paths of the curves of a chart, without those that are not there."""
    paths = chart(page, title).locator("g.mark-line path").all()
    return [d for path in paths if "L" in (d := path.get_attribute("d") or "")]


def wait_until_gone(page: "Page", curve: str) -> None:
    """Waits until no chart has a curve, as one of `lines`, any more."""
    page.wait_for_function(
        "curve => ![...document.querySelectorAll('g.mark-line path')]"
        ".some((path) => path.getAttribute('d') === curve)",
        arg=curve,
    )


def x_title(page: "Page", title: str) -> str:
    return chart(page, title).locator("g.role-axis-title").first.text_content() or ""


def test_every_chart_has_its_curves(show):
    page = show("one")
    assert page.title() == HOSTILE and page.locator("h1").text_content() == HOSTILE
    # the one in training is interrupted where it was not finite
    training, validation = lines(page, "Loss")
    assert training.count("M") == 2 and validation.count("M") == 1
    assert chart(page, "Loss").locator("svg text", has_text="\u00d7").count() == 1
    for title in ("Learning rate", "Gradient norm", HOSTILE):
        assert len(lines(page, title)) == 1, title
    assert len(lines(page, "Mixture of the data")) == 2
    assert len(lines(page, f"Loss by position: {HOSTILE}")) == 1
    # a restart and a skipped update
    assert chart(page, "Loss").locator("g.mark-rule.role-mark line").count() == 2
    assert page.locator(".sample pre").text_content() == f"def {HOSTILE}"


def axis_labels(page: "Page", title: str) -> list[list[str]]:
    """The labels of the axes of a chart, x first."""
    axes = chart(page, title).locator("g.role-axis-label").all()
    return [each.locator("text").all_text_contents() for each in axes]


def test_one_validation_is_a_point_at_the_end_of_the_run(show):
    page = show("probe")
    assert chart(page, "Loss").locator("g.mark-symbol path").count() == 1
    for title in ("Loss", "Perplexity", "Accuracy"):
        x, y = axis_labels(page, title)
        # a narrow chart has a label every 20 steps
        assert int(x[0]) <= 20 and x[-1] == "60", title
        assert not any("e" in label for label in y)


def test_shares_are_between_0_and_100_percent(show):
    page = show("probe")
    titles = ("Accuracy", "Accuracy of the answers", "Accuracy by position: recall")
    for title in titles:
        _, y = axis_labels(page, title)
        assert (y[0], y[-1]) == ("0%", "100%"), title


def test_positions_without_targets_have_no_marks(show):
    page = show("probe")
    for metric in ("Loss", "Accuracy"):
        figure = chart(page, f"{metric} by position: recall")
        assert figure.locator("g.mark-symbol path").count() == 2
        assert figure.locator("svg text", has_text="\u00d7").count() == 0


def test_no_heading_of_a_chart_is_cut(show):
    page = show("probe", viewport={"width": 1200, "height": 900})
    wide = "[...document.querySelectorAll('.unit')].filter(u => u.scrollWidth > u.clientWidth + 1)"
    assert page.evaluate(f"{wide}.map(u => u.textContent)") == []


def test_the_x_axis_can_be_chosen(show):
    page = show("one")
    assert x_title(page, "Loss") == "step"
    (before, _) = lines(page, "Loss")
    for button, title in (
        ("tokens", "tokens"),
        ("time", "training time (minutes)"),
        ("FLOPs", "training compute (FLOPs)"),
    ):
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_function(
            "title => document.querySelector('g.role-axis-title')?.textContent === title", arg=title
        )
        assert x_title(page, "Gradient norm") == title
    page.get_by_role("button", name="log x").click()
    wait_until_gone(page, before)
    # the choice outlives a reload
    page.reload()
    page.wait_for_selector("html[data-drawn]")
    assert x_title(page, "Loss") == "training compute (FLOPs)"


def test_runs_can_be_hidden_and_shown(show):
    page = show("two")
    assert len(lines(page, "Loss")) == 4 and len(lines(page, "Gradient norm")) == 2
    page.get_by_role("button", name="first", exact=True).click()
    page.wait_for_function("document.querySelectorAll('figure.main g.mark-line path').length < 4")
    assert len(lines(page, "Loss")) == 2 and len(lines(page, "Gradient norm")) == 1
    page.get_by_role("button", name="second", exact=True).click()
    page.wait_for_selector("figure.main .empty")
    page.get_by_role("button", name="first", exact=True).click()
    page.wait_for_selector("figure.main svg")


def test_smoothing_and_log_scales_change_the_curve(show):
    page = show("one")
    (before,) = lines(page, "Gradient norm")
    page.get_by_label("smoothing").fill("0.9")
    page.wait_for_function("document.querySelector('#smoothing-value').textContent === '0.90'")
    page.wait_for_function("document.querySelectorAll('figure.main g.mark-line path').length > 2")
    faint, smoothed = sorted(lines(page, "Gradient norm"), key=lambda curve: curve != before)
    assert faint == before
    page.get_by_role("button", name="Logarithmic y axis of Gradient norm").click()
    wait_until_gone(page, smoothed)


def test_the_pointer_shows_values_and_dragging_zooms(show):
    page = show("two")
    box = chart(page, "Loss").locator("svg.marks").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.2 * box["width"], middle)
    tip = page.locator(".tip")
    assert "step" in tip.text_content() and {"first", "second"} <= set(
        tip.locator("td:first-child").all_text_contents()
    )
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], middle)
    page.mouse.up()
    page.get_by_role("button", name="whole range").click()
    page.wait_for_selector("#whole", state="hidden")


def test_light_dark_and_paper(show):
    page = show("one", color_scheme="dark")

    def colors() -> tuple[str, str]:
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " document.querySelector('figure.main g.mark-line path').getAttribute('stroke')]"
        )

    dark = colors()
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_selector("html[data-theme=light]")
    page.wait_for_function(
        "stroke => document.querySelector('figure.main g.mark-line path')"
        "?.getAttribute('stroke') !== stroke",
        arg=dark[1],
    )
    light = colors()
    assert light[0] == "rgb(255, 255, 255)" and light[0] != dark[0]
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_selector("html[data-theme=dark]")
    assert page.pdf().startswith(b"%PDF")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(show):
    for name in ("one", "two"):
        page = show(name, viewport={"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ends = (
            "[...document.querySelectorAll('svg.marks')].map(s => s.getBoundingClientRect().right)"
        )
        assert max(page.evaluate(ends)) <= 360


def test_a_run_that_has_not_begun_has_a_page(show):
    assert "No measurements are recorded yet." in show("empty").locator("main").text_content()

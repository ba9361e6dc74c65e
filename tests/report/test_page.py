"""The page in a real browser: it sorts, filters, complains of nothing, and asks nobody for anything."""

from __future__ import annotations

import json
import re

import pytest

from app.report.summary import gather, write


@pytest.fixture
def page(sweep):
    write(gather([sweep]), sweep)
    return sweep / "summary.html"


@pytest.fixture
def opened(browser, page):
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    return browser


def column(browser, name: str) -> list[str]:
    """What the visible lines of the table have under a header."""
    return browser.execute_script(
        """const table = document.getElementById("runs");
        const index = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[0]);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[index].textContent);""",
        name,
    )


def press(browser, keys: str, selector: str) -> None:
    browser.find_element("css selector", selector).send_keys(keys)


def header(name: str) -> str:
    return f"//table[@id='runs']//button[text()='{name}']"


@pytest.mark.parametrize("name", ["p50 ms", "Batch", "Speed-up"])
def test_a_header_sorts_by_number_both_ways_with_the_keyboard(opened, name):
    button = opened.find_element("xpath", header(name))
    for order, sign in (("ascending", 1), ("descending", -1)):
        button.send_keys("\ue007")  # Enter
        cells = column(opened, name)
        values = [float(cell.replace(",", "")) for cell in cells if cell]
        assert len(values) >= 5
        assert values == sorted(values, key=lambda value, sign=sign: sign * value)
        assert cells[: len(values)] == [cell for cell in cells if cell]  # what has no value comes last
        assert button.find_element("xpath", "..").get_attribute("aria-sort") == order


def test_text_sorts_too(opened):
    opened.find_element("xpath", header("Status")).click()
    assert column(opened, "Status") == sorted(column(opened, "Status"))


def test_filters_narrow_the_table_together_and_clear(opened):
    everything = column(opened, "Job")
    press(opened, "8", "[data-filter=batch]")
    assert set(column(opened, "Batch")) == {"8"}
    press(opened, "AUTOTUNE", "[data-filter=text]")
    assert set(column(opened, "Job")) == {"2"}
    assert opened.find_element("id", "shown").text == f"1 of {len(everything)} lines"
    press(opened, "\ue007", "#filters button[type=reset]")
    opened.execute_async_script("setTimeout(arguments[0], 50)")
    assert column(opened, "Job") == everything
    press(opened, "lost", "[data-filter=status]")
    assert set(column(opened, "Job")) == {"5"}


def test_nothing_is_complained_of_or_asked_for_and_no_record_runs_a_script(opened, page):
    assert "</script>" in " ".join(column(opened, "Overrides"))
    assert opened.get_log("browser") == []
    events = (json.loads(entry["message"])["message"] for entry in opened.get_log("performance"))
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_narrow_and_wide_and_follows_the_theme(opened, width, theme, tmp_path):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    background = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (theme == "light")
    assert opened.get_screenshot_as_file(str(tmp_path / "page.png"))


def test_every_control_can_be_reached_with_the_keyboard_and_has_a_name(opened):
    unnamed = opened.execute_script(
        """return [...document.querySelectorAll("input, select, button, [tabindex='0']")].filter((each) => each.tabIndex < 0
        || !(each.labels?.length || each.textContent.trim() || each.ariaLabel)).map((each) => each.outerHTML)"""
    )
    assert unnamed == []


def test_the_page_of_a_thousand_jobs_is_under_a_megabyte_and_says_what_it_leaves_out(tmp_path, runs):
    source = runs.put(tmp_path / "all" / "0", batches=("1", "2", "4", "8"))
    for number in range(1, 1000):
        folder = tmp_path / "all" / str(number)
        folder.mkdir()
        text = (source / "record.json").read_text().replace('"mode": "default"', f'"mode": "mode-{number}"')
        (folder / "record.json").write_text(text.replace('"model": "cnn"', f'"model": "model-{number % 30}"'))
    write(gather([tmp_path / "all"]), tmp_path / "out")
    page = (tmp_path / "out" / "summary.html").read_bytes()
    assert len(page) < 1_000_000
    assert b"of 4000 lines; summary.csv has all" in page


def test_the_file_holds_no_address_and_no_script_but_its_own(page):
    text = page.read_text()
    assert text.count("<script>") == text.count("</script>") == 1
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name space, which nobody fetches

"""A run whose every text attacks whoever looks at it, in a real browser: shown as text, and nothing of it runs."""

from __future__ import annotations

import json

import pytest
from browser import hostile
from browser.watched import PATIENCE, TOKEN, Watched
from playwright.sync_api import expect

expect.set_options(timeout=PATIENCE)
pytest_plugins = ["browser.served"]

OVERLAPS = """() => ["main h1", ".title-row h2", ".paragraph-number", ".standing", ".badge"].filter((name) => {
    const box = document.querySelector(name).getBoundingClientRect();
    return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2)?.closest(".formula");
})"""
WORDS = list(hostile.TEXTS)


@pytest.fixture(scope="module")
def key(server, browser) -> str:
    """That of the hostile run, as the server lists it."""
    with Watched(browser, server, TOKEN) as watched:
        runs = json.loads(watched.context.request.get(f"{server}/api/runs.json").text())["runs"]
    (key,) = [run["key"] for run in runs if run["key"].startswith("hostile")]
    assert [run["state"] for run in runs if run["name"] == "deep"] == ["broken"]
    return key


def nothing_ran(watched: Watched) -> None:
    assert watched.page.evaluate("() => window.pwned") is None
    assert watched.page.locator("main script, main iframe, main img, main style, main link, main [onload], main [onerror]").count() == 0
    addresses = watched.page.evaluate("() => [...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))")
    assert addresses and all(address.startswith("#") for address in addresses), addresses
    styled = watched.page.evaluate(
        "() => [...document.querySelectorAll('main math *')].filter((e) => getComputedStyle(e).position === 'fixed').length"
    )
    assert styled == 0


@pytest.mark.parametrize(
    "route",
    [
        "#/",
        "#/run/{}",
        "#/run/{}/judge",
        "#/run/{}/step/1",
        "#/run/{}/step/1/anatomy",
        "#/run/{}/step/1/group/0?source=1",
        "#/run/{}/find?q=script",
    ],
)
def test_lists_and_groups_show_hostile_text_as_text(watched, key, route):
    watched.open(route.format(key))
    nothing_ran(watched)
    if not route.endswith("anatomy") and "judge" not in route:
        assert "<script>" in watched.page.inner_text("body") or "onerror=" in watched.page.inner_text("body")
    assert watched.axe() == []


@pytest.mark.parametrize("name", WORDS)
def test_a_hostile_rollout_is_shown_as_text_and_the_page_answers(watched, key, name):
    page = watched.open(f"#/run/{key}/step/1/rollout/0/{WORDS.index(name)}")
    page.wait_for_function("() => [...document.querySelectorAll('.formula')].every((each) => each.childNodes.length)")
    nothing_ran(watched)
    shown = page.inner_text(".paragraphs")
    wanted = {
        "script": [hostile.SCRIPT, hostile.HANDLER, hostile.REMOTE, hostile.STYLE],
        "control": ["neddih", "admin"],  # as the judge has it: hidden characters are taken out
        "latex": [r"$\unknown{$"],
        "deep": ["[" * 1000],
        "long": [f"{hostile.SCRIPT} word"],
        "openings": [r"\(\(\("],
    }[name]
    assert [text for text in wanted if text not in shown] == []
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    if WORDS.index(name) < 4:  # judged: critique, votes and prompt are there, hostile too
        assert hostile.SCRIPT in page.inner_text("main dl") and hostile.HANDLER in page.inner_text(".critique")
    for summary in page.locator("summary").all():
        summary.press("Enter")
    nothing_ran(watched)
    if name == "control":
        whole = page.inner_text("details:has-text('whole response')")
        spelt = ("⟨ESC⟩[31mred", "⟨U+202E⟩neddih⟨U+2066⟩", "⟨U+0000⟩", "line⟨CR⟩turned")
        assert [text for text in spelt if text not in whole] == []
        assert "with hidden characters, which the judge is not shown" in page.inner_text(".reading")
    page.keyboard.press("t")
    page.wait_for_selector(".tokens")
    nothing_ran(watched)


def test_formulas_are_drawn_and_bombs_stay_text(watched, key):
    page = watched.open(f"#/run/{key}/step/1/rollout/0/{WORDS.index('latex')}")
    page.wait_for_function("() => [...document.querySelectorAll('.formula')].every((each) => each.childNodes.length)")
    assert page.locator("main .formula").count() == 200  # of a thousand and some
    assert page.locator("main .formula math").count() > 100
    drawn = page.evaluate(OVERLAPS)
    assert drawn == []  # \rule{99999em}{99999em} covers nothing
    page.keyboard.press("s")
    page.wait_for_function("() => !document.querySelector('.formula')")
    assert r"\def\a{\b\b\b\b}" in page.inner_text(".paragraphs")


def test_two_million_characters_come_in_parts(watched, key):
    page = watched.open(f"#/run/{key}/step/1/rollout/0/{WORDS.index('long')}")
    more = page.locator(".reading .more button")
    assert more.inner_text() == "show the next 20,000 of 200,000 characters"
    before = len(page.inner_text(".paragraphs"))
    more.click()
    page.wait_for_function("before => document.querySelector('.paragraphs').innerText.length > before + 15000", arg=before)
    assert "1,800,000 further characters stand in the run's files only." in page.inner_text(".reading")
    nothing_ran(watched)

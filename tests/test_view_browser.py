"""The inspector in a real browser: each page of small committed runs, filters, λ, labels, keys, and a run whose texts attack."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from subprocess import CompletedProcess
from typing import Any

import pytest
from browser.chromium import CURE, chromium, install, must
from browser.watched import PATIENCE, RUNS, TOKEN, Watched
from playwright.sync_api import expect

from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.files.saved_step import groups_of
from soundrl.fapo.flips import flips
from soundrl.fapo.records import Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages
from soundrl.genrm.critic_data.labelled import Labelled
from soundrl.genrm.watch.probe import Probe

expect.set_options(timeout=PATIENCE)
pytest_plugins = ["browser.served"]

STEP = "#/run/small/step/8"
PAGES = {
    "runs": ("#/", "Runs"),
    "compare": ("#/compare?runs=small,tools", "Compare"),
    "run": ("#/run/small", "small"),
    "judge": ("#/run/small/judge", "Judge"),
    "step": (STEP, "Step 8 training"),
    "filter": (f"{STEP}?filter=flawed&sort=signal", "Step 8 training"),
    "evaluation": (f"{STEP}?kind=eval", "Step 8 evaluation"),
    "clock": (f"{STEP}/anatomy?sort=span", "Wall clock of step 8"),
    "group": (f"{STEP}/group/2?lam=2", "Group 2 of step 8"),
    "group of an evaluation": (f"{STEP}/group/2?kind=eval", "Group 2 of step 8, eval"),
    "rollout": (f"{STEP}/rollout/0/2", "Rollout 2 of group 0, step 8"),
    "tokens": (f"{STEP}/rollout/0/2?colour=difference", "Rollout 2 of group 0, step 8"),
    "prompt": ("#/run/small/prompt?id=arith-train:0:62", "One prompt arith-train:0:62"),
    "find": ("#/run/small/find?q=63", "Find"),
    "wide words": ("#/run/small/step/8/rollout/5/6", "Rollout 6"),
    "turns": ("#/run/tools/step/2/rollout/0/1", "Rollout 1 of group 0, step 2"),
    "no page": ("#/nothing/here", "No such page"),
}


def groups(kind: str = "train") -> list[Any]:
    return groups_of(RunReader(RUNS / "small").table(8, kind), "small")


ALIKE = ("filter", "evaluation", "group of an evaluation", "wide words", "turns", "no page")
"""Of the same parts as another page"""
DARK = ("runs", "run", "judge", "step", "group", "rollout", "tokens", "find")
"""Which have all the colours between them; a search for their contrasts is most of what these tests cost"""


@pytest.mark.parametrize(("theme", "rules"), [("light", "all"), ("dark", "colours"), ("narrow", "layout")])
def test_each_page_opens_without_a_fault_and_can_be_read_by_all(browser, server, theme, rules):
    """No error, nothing blocked, nothing asked of others; axe finds nothing serious; on a narrow screen no page scrolls sideways."""
    width = 360 if theme == "narrow" else 1280
    with Watched(browser, server, TOKEN, "dark" if theme == "dark" else "light", width) as watched:
        pages = DARK if theme == "dark" else PAGES
        found = {name: list(faults_of(watched, *PAGES[name], width, "layout" if name in ALIKE else rules)) for name in pages}
        assert {name: faults for name, faults in found.items() if faults} == {}


def faults_of(watched: Watched, route: str, title: str, width: int, rules: str) -> Iterator[str]:
    page = watched.open(route)
    if not (said := " ".join(watched.title().split())).startswith(title):
        yield f"its heading is {said}"
    if not page.title().endswith(" · soundrl"):
        yield f"its title is {page.title()}"
    if (wide := page.evaluate("() => document.documentElement.scrollWidth")) > width:
        yield f"{wide} pixels wide"
    yield from watched.axe(rules)


def test_a_page_that_the_policy_blocks_is_seen(watched):
    """The witness of what the other tests find nothing of."""
    watched.open("#/")
    watched.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 9'; document.body.append(s); }"
    )
    watched.page.evaluate("() => document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/x.png onerror=pwned=9>')")
    watched.page.wait_for_function("() => window.violations.length >= 3")
    assert watched.page.evaluate("() => window.pwned") is None
    assert {line.split()[0] for line in watched.blocked()} == {"script-src-elem", "script-src-attr", "img-src"}
    assert any("Content Security Policy" in line for line in watched.faults)
    watched.forget()


def test_each_filter_link_shows_what_it_counts(watched):
    page = watched.open(STEP)
    links = page.locator("nav[aria-label=Filters] a")
    names = [links.nth(i).inner_text().rsplit(" ", 1) for i in range(links.count())]
    assert [name for name, _ in names] == [
        "all", "right but flawed", "no verdict", "judges disagree", "sign turned by λ", "cut", "wrong", "no answer", "sound",
    ]  # fmt: skip
    assert sum(int(count) > 0 for _, count in names) >= 6, names
    cells = [(group, i) for group in groups() for i in range(len(group.rollouts))]
    flawed = sum(g.verdicts[i] is not None and g.verdicts[i].kind == "flawed" for g, i in cells)
    assert dict(names)["all"] == str(len(cells)) and dict(names)["right but flawed"] == str(flawed)
    for place, (name, count) in enumerate(names[1:], 1):
        page.locator("nav[aria-label=Filters] a").nth(place).click()
        page.wait_for_function("at => document.querySelectorAll('nav[aria-label=Filters] a')[at].ariaCurrent === 'true'", arg=place)
        assert page.locator(".strip .hits a").count() == int(count), name
        hits = page.locator(".strip .hits a").all_text_contents()  # inner text is that of rows in sight alone
        page.reload()  # the address alone holds it
        watched.ready()
        assert page.locator(".strip .hits a").all_text_contents() == hits, name


def test_another_lambda_gives_the_engines_own_advantages(watched):
    base = {"normalize_std": True, "max_new_tokens": 60, "overlong_buffer": 0, "overlong_factor": 1.0, "drop_unknown": True}
    own, turned = groups(), 0
    for number, group in enumerate(groups()):
        watched.open(f"{STEP}/group/{number}")
        for lam in (0.0, 4 / 3, 2.0):
            watched.page.get_by_label("λ as a number").fill(str(lam))
            assign_advantages([group], RewardSettings(lam=lam, **base))
            watched.page.wait_for_function("lam => location.hash.includes(`lam=${lam}`)", arg=str(lam).removesuffix(".0"))
            found = watched.page.locator("[data-advantage]").evaluate_all("all => all.map((each) => Number(each.dataset.advantage))")
            assert found == pytest.approx(group.advantages, abs=1e-6), (number, lam)
            said = watched.page.inner_text(".lambda [role=status]")
            flipped = [flip.rollouts for flip in flips([own[number]], [group])]
            assert said.endswith(": no advantage turns its sign.") if not flipped else f": {flipped[0]} of " in said, (number, lam, said)
            assert watched.page.locator(".turned").count() == sum(flipped)
            turned += sum(flipped)
    assert turned > 5  # witness: some do
    watched.page.locator("#lambda-slider").press("ArrowLeft")
    watched.page.wait_for_function("() => location.hash.includes('lam=1.99')")
    watched.page.get_by_role("button", name="the run's").click()
    watched.page.wait_for_function("() => !location.hash.includes('lam=')")


def test_tokens_show_what_sampler_and_trainer_have_computed(watched):
    run = RunReader(RUNS / "small")
    own = groups()[0].rollouts[2]
    (row,) = [row for row in run.trained(8).to_pylist() if (row["prompt_id"], row["sample"]) == (own.prompt_id, own.sample)]
    page = watched.open(f"{STEP}/rollout/0/2?colour=entropy")
    page.locator(".tokens").focus()
    for at in range(3):
        said = page.locator(".values").inner_text()
        numbers = [float(each.replace("−", "-")) for each in re.findall(r"(?:log-probability|trainer's|entropy) ([−\d.]+)", said)]
        assert numbers == pytest.approx([own.logprobs[at], row["logprobs"][at], row["entropy"][at]], abs=6e-5), said
        page.keyboard.press("ArrowRight")
        expect(page.locator(".values")).to_contain_text(f"token {at + 1}:")
    costs = watched.open(f"{STEP}/rollout/0/2").locator("section[aria-labelledby=costs-title] dd").all_inner_texts()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", costs[0]) and all(
        re.fullmatch(r"\+[\d.]+ s", each) for each in (*costs[1:3], costs[4])
    )
    times = watched.open(f"{STEP}/anatomy").inner_text("main")
    assert "Not recorded for any rollout of this step: first token." in times and "64 rollouts of which something was recorded" in times


class Answering:
    """A judge behind the interface of `EndpointJudge` that finds all sound."""

    step_deadline = 60.0

    def __init__(self) -> None:
        self.asked = list[tuple[str, tuple[str, ...]]]()

    def critique(self, problem: str, paragraphs: tuple[str, ...], reference: str | None, priority: int = 0, fresh: bool = False) -> Any:
        self.asked.append((problem, tuple(paragraphs)))
        future: Future[Verdict] = Future()
        future.set_result(Verdict.sound())
        return future


def test_a_label_is_written_and_the_probe_reads_it(watched, root):
    file = root / "small" / "labels.jsonl"
    page = watched.open(f"{STEP}/rollout/0/2")
    paragraphs = [text.strip() for text in page.locator(".paragraph > .text").all_inner_texts()]
    assert len(paragraphs) == 5 and "first wrong one: the judge, the oracle" in page.locator(".paragraph.wrong").inner_text()
    assert page.locator(".paragraph.after").count() == 2
    status = page.locator(".label [role=status]")
    page.get_by_role("button", name="agree", exact=True).click()
    expect(status).to_contain_text("You say: paragraph 2 is the first wrong one.")
    page.get_by_role("button", name="disagree: all sound").click()
    expect(status).to_contain_text("You say: no paragraph is wrong.")
    page.get_by_label("another: paragraph").fill("3")
    page.get_by_role("button", name="is the first wrong one").click()
    expect(status).to_contain_text("You say: paragraph 3 is the first wrong one.")
    page.reload()
    expect(page.locator(".label [role=status]")).to_contain_text("paragraph 3 is the first wrong one")
    (row,) = map(json.loads, file.read_text("utf-8").splitlines())
    assert (row["id"], row["steps"], row["label"]) == ("8/arith-train:0:57/2", paragraphs, 3)
    judge = Answering()
    rows = [Labelled(id=str(i), problem=f"{i}?", steps=("2+2=5", "so 5"), label=i % 2 - 1) for i in range(4)]
    seen = Probe(judge, rows, 1, file)(1)  # type: ignore[arg-type]
    assert (
        (row["problem"], tuple(paragraphs)) in judge.asked and seen["genrm/probe_labels"] == 1.0 and seen["genrm/probe_labels_right"] == 0.0
    )
    page.get_by_role("button", name="take it back").click()
    expect(page.locator(".label [role=status]")).to_contain_text("You have said nothing yet.")
    assert not file.exists()


def test_a_key_right_after_another_is_that_of_the_new_page(watched):
    """Both before the browser gets to anything else, as on a slow machine."""
    watched.open(f"{STEP}/rollout/1/1?kind=train")
    pressed = """async () => {
        for (const key of ["k", "t"]) {
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
            for (let i = 0; i < 5; i++) await null;
        }
        return location.hash;
    }"""
    assert watched.page.evaluate(pressed) == f"{STEP}/rollout/1/0?kind=train&colour=advantage"
    watched.page.go_back()
    watched.page.wait_for_function("route => location.hash === route", arg=f"{STEP}/rollout/1/0?kind=train")
    watched.ready()
    assert "Rollout 0" in watched.title()


def test_all_of_it_goes_by_keys(watched, root):
    """From the list of runs to a label and back, and a find, without a pointer."""

    def press(*keys: str) -> None:
        for key in keys:
            watched.page.keyboard.press(key)

    def at(route: str, title: str) -> None:
        watched.page.wait_for_function("route => location.hash === route", arg=route)
        expect(watched.page.locator("main h1")).to_contain_text(title)
        watched.ready()

    page = watched.open("#/")
    for _ in range(10):
        press("j")
        if "small" in page.evaluate("() => document.activeElement.textContent"):
            break
    press("Enter")
    at("#/run/small", "small")
    press("g", "s")
    at(STEP, "Step 8")
    press("j", "j", "Enter")
    at(f"{STEP}/group/1?kind=train", "Group 1")
    press("j", "Enter")
    at(f"{STEP}/rollout/1/0?kind=train", "Rollout 0")
    press("y")
    expect(page.locator(".label [role=status]")).to_contain_text("You say: paragraph")
    assert (root / "small" / "labels.jsonl").is_file()
    press("j")
    at(f"{STEP}/rollout/1/1?kind=train", "Rollout 1")
    press("k", "t")
    at(f"{STEP}/rollout/1/0?kind=train&colour=advantage", "Rollout 0")
    page.locator(".tokens").focus()
    press("ArrowRight", "ArrowRight")
    expect(page.locator(".values")).to_contain_text("token 2:")
    press("u")
    at(f"{STEP}/group/1?kind=train", "Group 1")
    press("J")
    at(f"{STEP}/group/2?kind=train", "Group 2")
    press("u", "a")
    at(f"{STEP}/anatomy", "Wall clock")
    press("g", "j")
    at("#/run/small/judge", "Judge")
    press("/")
    at("#/run/small/find", "Find")
    expect(page.locator("main [data-find]")).to_be_focused()
    press(*"63", "Enter")
    at("#/run/small/find?q=63", "Find")
    press("Escape", "j", "Enter")
    page.wait_for_function("() => location.hash.includes('/rollout/')")
    press("?")
    expect(page.get_by_role("dialog")).to_contain_text("go to the judge")
    press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    (root / "small" / "labels.jsonl").unlink()


def test_a_bundle_is_the_server_frozen(browser, bundle):
    with Watched(browser, bundle) as watched:
        for name in ("runs", "run", "judge", "filter", "evaluation", "clock", "group", "rollout", "tokens", "prompt", "find"):
            route, title = PAGES[name]
            page = watched.open(route)
            assert " ".join(watched.title().split()).startswith(title), (name, watched.title())
            assert page.locator(".notice.bad").count() == 0, (name, page.inner_text("main"))
        page = watched.open(PAGES["find"][0])
        assert page.locator(".found li").count() > 3
        assert watched.open(PAGES["prompt"][0]).locator("tbody tr").count() == 1
        assert watched.open(PAGES["rollout"][0]).locator(".label").count() == 0  # nothing can be written there


def test_a_machine_without_a_browser_is_told_how_to_get_one(monkeypatch):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/chromium" if name == "chromium" else None)
    assert (chromium(), must(), install()) == ("/usr/bin/chromium", False, "")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert (chromium(), must(), install()) == (None, False, f"the browser's tests will be skipped: {CURE}")
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    assert must()  # there it may not be skipped
    monkeypatch.setattr("os.geteuid", lambda: 0)
    asked = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: asked.append(command) or CompletedProcess(command, 0, "", ""))
    assert install() == "installed Debian's Chromium for the browser's tests" and asked[1][-1] == "chromium"
    monkeypatch.setattr("subprocess.run", lambda command, **_: CompletedProcess(command, 100, "", "E: no network\n"))
    assert install() == f"apt-get update -qq failed (E: no network); {CURE}"

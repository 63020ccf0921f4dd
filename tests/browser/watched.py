"""A page of the inspector in a real browser, watched: whatever it logs, throws, blocks or asks of others is a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page

TOKEN = "a-token-for-tests-of-the-page"
RUNS = Path(__file__).parent / "runs"
PATIENCE = 60_000  # ms until something that does not come is given up; how long it takes says how busy the machine is
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
READY = """() => document.querySelector("main h1")
    && ![...document.querySelectorAll("main p.quiet")].some((each) => each.textContent.startsWith("Reading "))"""
RULES = {"all": {}, "colours": {"runOnly": ["color-contrast"]}, "layout": {"rules": {"color-contrast": {"enabled": False}}}}
AXE = """(rules) => axe.run(document, {resultTypes: ["violations"], ...rules}).then((found) => found.violations
    .filter((each) => ["serious", "critical"].includes(each.impact))
    .map((each) => `${each.id}: ${each.nodes.slice(0, 3).map((node) => node.html.slice(0, 120)).join(" | ")}`))"""


class Watched:
    """`Watched(browser, "http://127.0.0.1:1234", token)`; `theme` is light or dark, `width` in CSS pixels. Context manager: at its end
    there must be no fault that was not forgotten."""

    def __init__(self, browser: Browser, base: str, token: str = "", theme: Any = "light", width: int = 1280) -> None:
        self.base, self.faults = base, list[str]()
        self.context: BrowserContext = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 800})
        self.context.set_default_timeout(PATIENCE)
        self.context.add_init_script(VIOLATIONS)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)
        self.context.on("request", self._request)
        self.context.on("page", lambda page: self.faults.append(f"another page: {page.url}"))
        if token:
            self.page.goto(f"{base}/?token={token}")

    def _console(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.faults.append(f"console: {said.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:,")):
            self.faults.append(f"asked of another: {request.url}")

    def open(self, route: str) -> Page:
        """The page at a route, `#/run/small`, once what it asked for is there."""
        self.page.goto(f"{self.base}/{route}")
        return self.ready()

    def ready(self) -> Page:
        self._drawn()  # a new route
        self.page.wait_for_function(READY)
        self._drawn()  # what has come: rows are laid out where they are seen (content-visibility), and have no inner text before
        return self.page

    def _drawn(self) -> None:
        self.page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")

    def title(self) -> str:
        return self.page.inner_text("main h1")

    def axe(self, rules: str = "all") -> list[str]:
        """Serious and critical findings, a line each; of all rules, of `colours` alone or of all but these (`layout`)."""
        if not self.page.evaluate("() => 'axe' in window"):
            self.page.evaluate(AXE_SCRIPT)
        return self.page.evaluate(AXE, RULES[rules])

    def blocked(self) -> list[str]:
        """What the page's policy has blocked so far; `PROBE` is its witness."""
        return self.page.evaluate("() => window.violations")

    def forget(self) -> None:
        """What was found so far."""
        self.faults.clear()
        self.page.evaluate("() => { window.violations = []; }")

    def check(self) -> None:
        """There was no fault, and nothing was blocked, since the last `forget`."""
        found = [*self.faults, *self.blocked()]
        self.forget()  # the next test's are its own
        assert not found, found

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.check()
        self.context.close()

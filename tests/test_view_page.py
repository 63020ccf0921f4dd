"""The inspector's page as it is committed: built from these very sources, small, without anything that its policy forbids."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB, PAGE = ROOT / "view" / "web", ROOT / "view" / "page"
LIMIT = 400_000  # bytes
MANIFEST = json.loads((PAGE / "build.json").read_text("utf-8"))


def digests(folder: Path, paths: list[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def sources() -> list[Path]:
    alone = [WEB / name for name in ("package.json", "package-lock.json", "build.mjs", "index.html")]
    return alone + [path for path in (WEB / "src").rglob("*") if path.is_file()]


def test_the_page_was_built_from_these_sources() -> None:
    assert MANIFEST["sources"] == digests(WEB, sources()), "view/page/ is stale: run `make page` and commit view/page/"


def test_nobody_wrote_into_the_built_page() -> None:
    built = [path for path in PAGE.rglob("*") if path.is_file() and path.name != "build.json"]
    assert MANIFEST["files"] == digests(PAGE, built), "view/page/ is not what the build wrote: run `make page`"
    assert {"index.html", "app.js", "app.css", "math.js", "licenses.txt"} <= set(MANIFEST["files"])


def test_a_changed_source_is_told() -> None:
    """The witness of the first test: one letter more in one file is another digest."""
    path = WEB / "src" / "route.js"
    assert MANIFEST["sources"]["src/route.js"] != hashlib.sha256(path.read_bytes() + b" ").hexdigest()


def test_the_page_is_small_and_asks_no_other_host() -> None:
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert not [path.name for path in files if path.suffix == ".map"]
    html = (PAGE / "index.html").read_text("utf-8")
    # No inline script, style or handler; every address below the page itself.
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", html)
    assert '<meta name="base" content="api">' in html
    assert re.findall(r'(?:src|href)="([^"]+)"', html) == ["data:,", "app.css", "app.js"]
    assert not re.search(r"url\(|@import", (PAGE / "app.css").read_text("utf-8"))
    namespaces = {"http://www.w3.org/1998/Math/MathML", "http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}
    code = "".join(path.read_text("utf-8") for path in files if path.suffix == ".js")
    assert set(re.findall(r"https?://[\w./-]+", code)) <= namespaces | {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/1998/Math/MathML",
    }
    assert not re.search(r"\beval\(|new Function\(|dangerouslySetInnerHTML\s*:|\.outerHTML\b|insertAdjacentHTML|document\.write", code)


def test_sources_never_write_html() -> None:
    for path in (WEB / "src").rglob("*.js*"):
        text = path.read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write", text), path
        assert len(text.splitlines()) <= 300, f"{path} is longer than 300 lines"


def test_versions_are_pinned() -> None:
    package = json.loads((WEB / "package.json").read_text("utf-8"))
    lock = json.loads((WEB / "package-lock.json").read_text("utf-8"))["packages"]
    wanted = package["dependencies"] | package["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all("integrity" in entry for name, entry in lock.items() if name)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed: the page's own tests need node 20 or newer")
def test_the_pages_own_tests() -> None:
    files = sorted(str(path) for folder in ("src", "test") for path in (WEB / folder).rglob("*.test.js"))
    assert files
    done = subprocess.run(["node", "--test", *files], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert (hits := re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)) and int(hits[1]) >= 20

"""Reads the cases of math-verify's own tests out of its source distribution (nothing of it is kept here).

As a program, `python mathverify_cases.py --fetch` brings the distribution here (`make test` does so before the tests, which use no
network), and `python mathverify_cases.py UNPACKED_FOLDER` prints the cases as JSON, in a process of its own, since the distribution's tests
import each other as `tests.…`, which is also the name of this folder.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from soundrl.fapo.verify.box import final_box, reference_part
from soundrl.fapo.verify.rule import list_length

VERSION = "0.9.0"
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "soundrl-tests" / f"math_verify-{VERSION}"
MODULES = (
    "test_all",
    "test_boxed",
    "test_configs",
    "test_gamma_func",
    "test_numina_cases",
    "test_open_thoughts",
    "test_raise_on_error",
    "test_strict",
    "test_string_extraction",
    "test_timeout",
    "test_yujianll",
)


def fetch() -> str | None:
    """Unpacks the source distribution to FOLDER, unless it is there; returns pip's last words where pip cannot fetch it, else None."""
    if (FOLDER / "tests" / "test_all.py").exists():
        return None
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--retries",
            "1",
            "--timeout",
            "10",
        ]
        command += [f"math-verify=={VERSION}", "-d", scratch]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        if done.returncode:
            return done.stderr.strip()[-300:]
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as tar:
            tar.extractall(scratch, filter="data")
        shutil.rmtree(FOLDER, ignore_errors=True)
        (Path(scratch) / FOLDER.name).rename(FOLDER)
    return None


def read(folder: Path) -> list[dict[str, Any]]:
    """All cases, in the order of the files: `test`, `index` and either gold/pred/expected (with `options`) or neither."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), str(folder)], capture_output=True, text=True, timeout=1200, check=True
    )
    return json.loads(done.stdout)


def collect(folder: Path) -> list[dict[str, Any]]:
    """`read`, in this process; puts `folder` in front of the import path."""
    sys.path.insert(0, str(folder))
    cases: list[dict[str, Any]] = []
    for name in MODULES:
        module = importlib.import_module(f"tests.{name}")
        tests = [(key, value) for key, value in vars(module).items() if key.startswith("test_") and callable(value)]
        for test, function in tests:
            marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
            if not marks:
                cases.append({"test": f"{name}::{test}", "index": 0})
                continue
            names = [part.strip() for part in marks[0].args[0].split(",")]
            for index, values in enumerate(marks[0].args[1]):
                case: dict[str, Any] = {"test": f"{name}::{test}", "index": index}
                row = dict(zip(names, values, strict=True))
                if "gold" in row:
                    case |= {"gold": row.pop("gold"), "pred": row.pop("pred"), "expected": int(row.pop("expected", row.pop("result", 0)))}
                    case["options"] = row
                cases.append(case)
    return cases


_DISPLAY = re.compile(r"\$\$.+?\$\$|\\\[.+?\\\]|(?<!\\)\$(?:\\\$|[^$\n])+?(?<!\\)\$|\\\([^\n]+?\\\)", re.DOTALL)
_JOINED = re.compile(r"\s*(?:,|,?\s*and|,?\s*or)?\s*")
_PERCENT = re.compile(r"\s*(?:\\?%|percentage\b|percent\b|pct\b)")
_FINAL = re.compile(r"[Ff]inal answer is:?\s*(.+?)\.?\s*I hope", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[$€]?-?(?:\d[\d,]*(?:\.\d+)?(?:/\d+)?|\.\d+)(?:\s*(?:%|€|\$|m²|percent\b|pct\b))?(?![A-Za-z])")


def answer_span(text: str, *, gold: str | None = None) -> str | None:
    """The part of a case's text that a well-behaved model would have boxed.

    The cases are free text, of which math-verify picks the answer; our rule asks for a box. So that all of them can be put to our
    comparison, this takes: the box by our own rule, for which `gold` is the reference (None = this is the reference, and
    its boxes are read by our rule for references); else what stands after
    `final answer is`; else the later of the last number and the last mathematics, with what is joined to that by a comma, `and`, `or`.
    A text of which every backslash is doubled (raw strings that were escaped once too often) is read with single ones.
    """
    if "\\\\" in text and not re.search(r"(?<!\\)\\(?!\\)", text.replace("\\\\", "")):
        text = text.replace("\\\\", "\\")
    if gold is None and reference_part(text) != text:
        return reference_part(text)
    box = final_box(text, parts=list_length(gold) if gold else 1)
    if box:
        tail = _PERCENT.match(text, text.rfind(box.text) + len(box.text) + 1) or _PERCENT.match(text, text.rfind("}$") + 2)
        if box.hedged:
            return None
        return box.text + (tail.group() if tail else "")
    final = _FINAL.findall(text)
    if final and len(final[-1]) < 200:
        return final[-1]
    if re.fullmatch(r"[$€]?[-\d ,./]+[$€]?", text):
        return text
    if len(text) < 40 and not re.search(r"[$ ]", text):
        return text
    spans = list(_DISPLAY.finditer(text))
    number = next(reversed(list(_NUMBER.finditer(text))), None)
    if spans and (number is None or number.start() < spans[-1].end()):
        start = len(spans) - 1
        while start and _JOINED.fullmatch(text, spans[start - 1].end(), spans[start].start()):
            start -= 1
        percent = _PERCENT.match(text, spans[-1].end())
        return text[spans[start].start() : percent.end() if percent else spans[-1].end()]
    if number is None:
        return None
    return None if re.search(r"\$ ?\n|\\\( ?\n", text) else number.group()


if __name__ == "__main__":
    if sys.argv[1] == "--fetch":
        if said := fetch():
            print(f"pip could not fetch the source of math-verify {VERSION} (its cases are skipped): {said}")
    else:
        json.dump(collect(Path(sys.argv[1])), sys.stdout)

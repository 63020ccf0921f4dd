"""The page of a hang: what each rank does, since when, and what it waits for by name; and which of them is behind.

Stacks are named by file, line and function alone: source lines would be read from a disk that may be what hangs.
"""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from soundrl.engine.launch.last_words import RANK
from soundrl.fapo.printable import one_line
from soundrl.fapo.waiting import GIVEN_UP, announced

Page = dict[str, Any]
"""`who`, `silent`, `limit`, `where`, `since` (seconds), `collective`, `place` (of the main thread), `asks` (whether it waits for what is
named), `waits` (lines), `stacks` (lines by thread)"""
ROOT = Path(__file__).resolve().parents[2]
LIBRARY = re.compile(r"-packages/|/lib/python3\.\d+/")
DEEPEST = 60  # frames of a thread that are shown, the innermost
MOST = 200  # lines of what a rank waits for
OWN = re.compile("hang answers|hang watch|process_request_thread|signals")  # threads of this very watch


def page_of(who: str, silent: float, limit: float) -> Page:
    """Of this rank."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident or 0
    frames = {ident: frame for ident, frame in sys._current_frames().items() if not OWN.search(names.get(ident, ""))}
    stack = stack_of(frames[main])
    return {
        "who": who,
        "silent": silent,
        "limit": limit,
        "where": RANK.where,
        "since": time.monotonic() - RANK.since,
        "collective": collective(stack),
        "place": place(stack),
        "asks": place(stack).startswith(("fapo/", "genrm/")),
        "waits": [line for waiting in announced() for line in waiting.waits()][:MOST],
        "stacks": {
            names.get(ident) or "a thread of C": [f"{short(f.filename)}:{f.lineno} {f.name}" for f in stack_of(frame)]
            for ident, frame in sorted(frames.items(), key=lambda item: item[0] != main)
        },
    }


def stack_of(frame: FrameType) -> list[traceback.FrameSummary]:
    """The outermost frame first."""
    return list(traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False))[:DEEPEST][::-1]


def short(name: str) -> str:
    """A file's path below the repository, the installed packages or the standard library."""
    return LIBRARY.split(name)[-1].removeprefix(f"{ROOT}/")


def own_frames(stack: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Those of this repository, the outermost first."""
    return [frame for frame in stack if not LIBRARY.search(frame.filename) and frame.filename.startswith(f"{ROOT}/")]


def place(stack: list[traceback.FrameSummary]) -> str:
    """The innermost line of ours: `engine/exchange.py:62 settle`."""
    frame = (own_frames(stack) or stack)[-1]
    return f"{short(frame.filename)}:{frame.lineno} {frame.name}"


def collective(stack: list[traceback.FrameSummary]) -> str:
    """The collective in which a stack stands, and who called it: `all_reduce of engine/exchange.py:62 settle`. Empty: in none."""
    inner = [frame for frame in stack if "torch/distributed/" in frame.filename and frame.name != "wrapper"]
    callers = [frame for frame in own_frames(stack) if not frame.filename.endswith("engine/ranks.py")]
    if not inner:
        return ""
    return f"{inner[-1].name} of {place(callers or stack)}"


def cause(pages: Mapping[int, Page], missing: Mapping[int, str]) -> str:
    """Who is behind, and what it waits for: those that do not answer, else those that are in no collective, else where all of them are."""
    if missing:
        return "; ".join(f"rank {rank} {why}" for rank, why in missing.items())
    behind = {rank: page for rank, page in pages.items() if not page["collective"]}
    said: dict[str, list[int]] = {}
    for rank, page in (behind or pages).items():
        waits = page["waits"]
        first = [line for line in waits if line.startswith(("the outcome", "the verdict"))]
        named = [line for line in waits if line not in first][:2]
        if page["collective"]:
            what = f"in {page['collective']}"
        elif page["asks"] and waits:
            more = [f"and {len(first) - 1} more"] if len(first) > 1 else []
            what = "waits for " + ", ".join([*first[:1], *more, *named])
        else:
            what = f"stands in {page['place']}"
        said.setdefault(f"{what} ({page['where']})", []).append(rank)
    return "; ".join(f"rank {', '.join(map(str, ranks))} {what}" for what, ranks in said.items())


def has_an_end(pages: Mapping[int, Page], missing: Mapping[int, str]) -> bool:
    """Whether whoever is behind waits for verdicts that are given up in time: the run goes on then, however slow a judge is."""
    behind = [page for page in pages.values() if not page["collective"]]
    return not missing and bool(behind) and all(page["asks"] and page["waits"] and GIVEN_UP in page["waits"][0] for page in behind)


def report(why: str, pages: Mapping[int, Page], missing: Mapping[int, str]) -> str:
    """The text of the page, every line of it harmless on a terminal."""
    lines = [f"No progress on any rank. {why}", time.strftime("%Y-%m-%d %H:%M:%S %z"), ""]
    lines += [f"rank {rank} {state}" for rank, state in missing.items()]
    for page in pages.values():
        lines += [
            f"{page['who']}: in {page['where']} for {page['since']:.0f} s, silent for {page['silent']:.0f} s of {page['limit']:.0f}",
            f"  stands in {page['place']}" + (f", in the collective {page['collective']}" if page["collective"] else ""),
            *(f"  waits for {line}" for line in page["waits"]),
        ]
        for name, stack in page["stacks"].items():
            lines += [f"  thread {name}:", *(f"    {line}" for line in stack)]
        lines.append("")
    return "".join(line[: len(line) - len(line.lstrip())] + one_line(line) + "\n" for line in lines)

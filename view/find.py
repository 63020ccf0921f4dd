"""Text in the solutions, critiques and problems of steps, for as long as a page may wait."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from soundrl.view.arrow import compute
from soundrl.view.groups import letters_of
from soundrl.view.plain import NotThere
from soundrl.view.run import Run

Json = dict[str, Any]
SECONDS = 0.7  # of one answer
TEXT = 4000  # characters of a solution in a bundle
HITS = 200
AROUND = 60  # characters before and after
WHERE = ("text", "critique", "prompt")
LONGEST = 200  # characters of what is looked for


def steps_asked(run: Run, kind: str, first: int, last: int) -> list[int]:
    return [step for step in run.steps().get(kind, ()) if first <= step <= last]


def find_page(run: Run, sought: str, kind: str, first: int, last: int) -> Json:
    """`<key>/find.json?q=…&kind=train&steps=1-12`; large and small letters are alike. `searched`: first and last step that were looked at,
    whole; `more`: there are others, to be asked for from the next one on."""
    if not sought or len(sought) > LONGEST:
        raise ValueError(f"q has {len(sought)} characters; give 1 to {LONGEST}")
    hits: list[Json] = []
    steps, done, until = steps_asked(run, kind, first, last), [], time.monotonic() + SECONDS
    for step in steps:
        if done and time.monotonic() > until:
            break
        found = hits_in(run, step, kind, sought)
        if done and len(hits) + len(found) > HITS:
            break
        hits += found
        done.append(step)
    more = len(done) < len(steps) or len(hits) > HITS
    return {"hits": hits[:HITS], "searched": [done[0], done[-1]] if done else [], "more": more}


def hits_in(run: Run, step: int, kind: str, sought: str) -> list[Json]:
    held, out = run.step(step, kind), []
    here = np.argsort(held.disk)  # the row of each row of the files
    starts = {head.start for head in held.heads}
    for number, part in enumerate(held.parts):
        row = int(held.starts[number])
        for batch in part.again(WHERE):
            for name in (name for name in WHERE if name in batch.schema.names):
                column = batch.column(name)
                mask = compute.match_substring(column, sought, ignore_case=True).fill_null(False)
                for at in compute.indices_nonzero(mask).to_pylist():
                    own = int(here[row + at])
                    if len(out) > HITS or (name == "prompt" and own not in starts):  # a problem is one hit, of its group
                        continue
                    g, sample = held.place(own)
                    out.append({"step": step, "g": g, "sample": sample, "where": name, **around(column[at].as_py(), sought)})
            row += batch.num_rows
    return sorted(out, key=lambda hit: (hit["g"], hit["sample"]))


def texts_page(run: Run, step: int) -> list[list[Any]]:
    """`<key>/find-texts-<step>.json`: [g, sample, text] of a step of training, for a bundle's page, which has no server to ask."""
    held = run.step(step, "train")
    texts = held.read(list(range(len(held.disk))), ("text",))
    return [[*held.place(row), (read["text"] or "")[:TEXT]] for row, read in enumerate(texts)]


def around(text: str, sought: str) -> Json:
    """
    >>> around("So 2+2 = 4.", "2 = ")
    {'before': 'So 2+', 'hit': '2 = ', 'after': '4.'}
    """
    at = text.lower().find(sought.lower())
    at = at if at >= 0 else 0
    return {
        "before": text[max(at - AROUND, 0) : at],
        "hit": text[at : at + len(sought)],
        "after": text[at + len(sought) : at + len(sought) + AROUND],
    }


def prompt_page(run: Run, id: str) -> Json:
    """`<key>/prompt.json?id=…`: the index of steps grows for as long as a page may wait, the newest first."""
    if not id:
        raise ValueError("id is empty; give a prompt's")
    until = time.monotonic() + SECONDS
    asked = sorted(((step, kind) for kind, steps in run.steps().items() for step in steps), reverse=True)
    for step, kind in asked:
        if (step, kind) not in run.prompts.seen:
            if time.monotonic() > until:
                break
            try:
                run.step(step, kind)
            except NotThere:
                continue
    places = run.prompts.of(id)
    out = []
    for step, kind, g in places:
        held = run.step(step, kind)
        out.append([step, kind, g, "".join(letters_of(held)[held.rows(g)])])
    seen = [step for step, _ in run.prompts.seen]
    left = sum(each not in run.prompts.seen for each in asked)
    return {"places": out, "searched": [min(seen), max(seen)] if seen else [], "left": left}

"""Flaws at a known step, planted into GSM8K's reference solutions, whose calculation marks (`<<48/2=24>>24`) say what is worked out where.

The final answer stays right in every kind:

* `ignored`: the shown result of a step is wrong, and later steps go on with the right one;
* `repaired`: the same, and the next step says that it takes the right value;
* `skipped`: a step whose result a later one needs is left out; the flaw is the step that uses what nobody worked out;
* `guess`: the solution stops half-way and names the answer.

With each row stands what a careful critic says: the sums of every paragraph up to the flaw, and what is wrong there.
"""

from __future__ import annotations

import random
import re

from soundrl.fapo.data.rows import shown
from soundrl.fapo.records import Prompt
from soundrl.genrm.critic_data.labelled import Critiqued

KINDS = ("ignored", "repaired", "skipped", "guess")
_MARK = re.compile(r"<<([^<>=\n]*)=([^<>=\n]*)>>")
# The result stands right behind its mark; not followed by more digits.
_SHOWN = re.compile(r"<<[^<>=\n]*=([0-9]+)>>\1(?![\d,]|\.\d)")


def plain(step: str) -> str:
    """`"Half is 48/2 = <<48/2=24>>24."` → `"Half is 48/2 = 24."`"""
    return _MARK.sub("", step)


def finished(steps: list[str], answer: str) -> tuple[str, ...]:
    return (*map(plain, steps), f"The answer is \\boxed{{{answer}}}.")


def critique(steps: list[str], at: int, what: str) -> str:
    """What a critic says before its box: `steps` with their marks as they are right up to the one `at` (−1 = all), and of that `what`.

    >>> print(critique(["Half is 48/2 = <<48/2=24>>24.", "48+24 = <<48+24=72>>75."], 1, "48+24 = 72, not 75"))
    Paragraph 0: 48/2 = 24. Right.
    Paragraph 1: 48+24 = 72, not 75. Wrong.
    """
    sums = [", ".join(f"{match[1].strip()} = {match[2].strip()}" for match in _MARK.finditer(step)) or "no sum" for step in steps]
    right = [f"Paragraph {i}: {said}. Right." for i, said in enumerate(sums[: at if at >= 0 else None])]
    return "\n".join([*right, f"Paragraph {len(right)}: {what}. {'Right' if at < 0 else 'Wrong'}."])


def sound(prompt: Prompt) -> Critiqued:
    """The reference solution itself. Raises `ValueError` where the row has none."""
    steps = _steps(prompt)
    said = critique(steps, -1, f"the answer {prompt.answer} is what was worked out")
    return _labelled(prompt, finished(steps, prompt.answer), -1, "sound", said)


def plant(prompt: Prompt, kind: str, rng: random.Random) -> Critiqued | None:
    """One flaw of `kind` at a random step where it fits; None where it fits nowhere in this solution."""
    steps = _steps(prompt)
    following = range(len(steps) - 1)
    places = {
        "ignored": [i for i, step in enumerate(steps) if _SHOWN.search(step)],
        "repaired": [i for i in following if _SHOWN.search(steps[i])],
        "skipped": [i for i in following if _used(steps[i], steps[i + 1])],
        "guess": range(1, len(steps)),
    }
    if kind not in places:
        raise ValueError(f"unknown kind of flaw {kind!r}; use one of {', '.join(KINDS)}")
    if not places[kind]:
        return None
    at = rng.choice(places[kind])
    if kind == "guess":
        guessed = (*map(plain, steps[:at]), f"From this one sees that the answer is \\boxed{{{prompt.answer}}}.")
        return _labelled(prompt, guessed, at, kind, critique(steps, at, f"{prompt.answer} is named, and nothing works it out"))
    what = ""
    if kind == "skipped":
        used = sorted(_used(steps[at], steps[at + 1]))
        what = f"it uses {', '.join(used)}, which no paragraph works out"
        del steps[at]
    elif match := _SHOWN.search(steps[at]):
        wrong = wrong_value(match[1], rng)
        what = f"{match[0][2 : match[0].index('=')].strip()} = {match[1]}, not {wrong}"
        steps[at] = steps[at][: match.end() - len(match[1])] + wrong + steps[at][match.end() :]
        if kind == "repaired":
            steps[at + 1] = f"Taking {match[1]} for that, {steps[at + 1][0].lower()}{steps[at + 1][1:]}"
    return _labelled(prompt, finished(steps, prompt.answer), at, kind, critique(steps, at, what))


def wrong_value(right: str, rng: random.Random) -> str:
    """A number that a slip would give: off by one to nine, by ten, or with two digits swapped; never `right` itself, never negative.

    Example: "24" → "34", "42", "21" …
    """
    value = int(right)
    choices = {value + delta for delta in (-10, -9, -5, -3, -2, -1, 1, 2, 3, 5, 9, 10)}
    if len(right) > 1:
        choices.add(int(right[:-2] + right[-1] + right[-2]))
    return str(rng.choice(sorted(choice for choice in choices if choice >= 0 and choice != value)))


def _used(step: str, following: str) -> set[str]:
    """Results that this step works out and with which the next one calculates without working them out itself."""
    results = {match[2].strip() for match in _MARK.finditer(step)}
    used = {number for match in _MARK.finditer(following) for number in re.findall(r"[0-9.]+", match[1])}
    return results & used - {"1", "2", "100"}  # numbers that come from anywhere


def _steps(prompt: Prompt) -> list[str]:
    """The lines of the reference solution without the last one, `#### 72`."""
    steps = [line.strip() for line in (prompt.solution or "").split("\n") if line.strip() and not line.startswith("####")]
    if not steps:
        raise ValueError(f"{prompt.id}: solution: {shown(prompt.solution)}; flaws are planted into GSM8K's worked solutions")
    return steps


def _labelled(prompt: Prompt, steps: tuple[str, ...], label: int, kind: str, said: str) -> Critiqued:
    return Critiqued(id=f"{prompt.id}/{kind}", problem=prompt.text, steps=steps, label=label, answer=prompt.answer, critique=said)

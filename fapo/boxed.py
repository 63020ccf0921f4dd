"""The last boxed answer of a text."""

from __future__ import annotations


def boxed_answer(text: str) -> str | None:
    r"""Content of the last brace-matched `\boxed{…}`, or None. Example: `so \boxed{\frac{1}{2}}` → `\frac{1}{2}`."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth, begin = 0, start + len("\\boxed")
        for end in range(begin, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[begin + 1 : end]
        start = text.rfind("\\boxed{", 0, start)
    return None

"""Reference answers as data sets store them → the answer alone: lists of one, JSON, sentences, marks and whole solutions are unwrapped.

A reference in a wrapping that no response repeats makes every rollout of its row wrong, without a word. What has one reading is unwrapped;
what has several is refused; what is no wrapping stays as it is, spelling and all.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from soundrl.fapo.data.rows import RowError, shown
from soundrl.fapo.verify.box import final_box

KEYS = ("answer", "final_answer", "ground_truth", "value", "target", "solution", "result")
"""Names under which an object of one field holds its answer."""
MAX_EXPONENT = 300  # numbers in JSON beyond 1e±300 are no doubles; writing out their digits would take any amount of memory

_OBJECT = re.compile(rf"""\{{\s*(["'])(?:{"|".join(KEYS)})\1\s*:\s*([^"',:{{}}]+|"[^"]*"|'[^']*')\s*\}}""", re.IGNORECASE)
_LIST = re.compile(r"""(?:array\()?\[\s*("[^"]*"|'[^']*')\s*\](?:,\s*dtype=\w+\))?""")
_TAG = re.compile(r"<([a-z_]+)>(.*)</\1>", re.IGNORECASE | re.DOTALL)
_QUOTED = re.compile(r"""(["'`])([^"'`]+)\1|(\*\*|\$\$?)([^*$]+)\3\.?|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]""", re.DOTALL)
_SAID = re.compile(
    r"""\W*+(?:(?:so|thus|hence|therefore|and)\b,?\s*)?(?:(?:the|my|our)\s+)?(?:(?:final|correct|right)\s+)?(?:answer|ans|solution|result|答案)\b
    (?:\s+is\b[\s*_]*[:=]?|[\s*_]*[:：=])[\s*_]*+(\S.*)""",
    re.IGNORECASE | re.VERBOSE,
)
_HOPE = re.compile(r"(?:\.?\s*I hope it is correct)?(?<!\.)\.?\Z")
"""The end of Minerva's few-shot solutions, and a sentence's own."""
_STRUCTURE = re.compile(r"""(?:[\[{(]\s*)+["']|array\(|(?:nan|null|<na>)\Z""", re.IGNORECASE)
MAX_WORDS = 20  # a reference of more words is a solution or a proof, which no boxed answer repeats


def plain_reference(value: object) -> str | None:
    """The reference answer in `value`, a field's content; None where there is none. `RowError` where it is none or several.

    Texts, whole numbers and numbers with a point as they are written (0.50 stays 0.50), or a list or object of one of these. Of a text
    counts what stands after `####` (GSM8K) or `Answer:` in its last line, within `\\boxed{}`, tags, quotes or mathematics signs, in a list
    of one text (`["14"]`) or an object of one field (`{"answer": 14}`), and one of lines that are all the same.

    >>> wrapped = "So 3*4 = 12.\\n#### 1,200", "The answer is 14.", ["14"], '{"answer": 14}', "$x^2$", "14\\n14"
    >>> [plain_reference(value) for value in wrapped]
    ['1,200', '14', '14', '14', 'x^2', '14']
    """
    if isinstance(value, list) and len(value) == 1:
        return plain_reference(value[0])
    if isinstance(value, dict) and len(value) == 1 and str(next(iter(value))).lower() in KEYS:
        return plain_reference(next(iter(value.values())))
    if value is None:
        return None
    if isinstance(value, float) and math.isfinite(value):  # of Parquet: a double, in its shortest spelling
        value = Decimal(repr(value))
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) <= MAX_EXPONENT:
        return format(value, "f").removesuffix(".0")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        found = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
        raise RowError(f"{found} where one text or number is expected; write it as a string")
    text = value.strip()
    while (inner := _inner(text)) != text:
        text = inner
    if _STRUCTURE.match(text):
        raise RowError(f"{shown(text)} is a list, an object or a missing value, not one answer; write the answer alone")
    if (words := len(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", text))) > MAX_WORDS:
        raise RowError(f"{shown(text)} has {words} words, which no boxed answer repeats; write the answer alone")
    if "\n" in text and not re.search(r"\\begin\b|\\\\", text):
        raise RowError(f"{shown(text)} has several lines, of which none is marked as the answer; write the answer alone")
    return text


def _inner(text: str) -> str:
    """`text` without its outermost wrapping."""
    for pattern in (_LIST, _OBJECT, _TAG, _QUOTED):
        if found := pattern.fullmatch(text):
            return next(part for part in reversed(found.groups()) if part is not None).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [text]
    if "####" in lines[-1]:
        return lines[-1].rpartition("####")[2].strip() or text
    for sentence in (lines[-1], re.split(r"(?<=[.!?])\s+", _HOPE.sub("", lines[-1]))[-1]):
        if found := _SAID.fullmatch(sentence):
            return _HOPE.sub("", found[1].rstrip("*_ ")).rstrip("*_ ") or text
    if (box := final_box(text)) is not None and not box.hedged:
        return box.text.strip()
    return lines[0] if len(set(lines)) == 1 else text

r"""Finds the option that a response chooses, by its letter or by its text; options are A to J.

A response states its choice in one of these ways, of which the last counts:

* a box, a tag or a last line of hashes: `\boxed{C}`, `<answer>C</answer>`, `#### C`; `{"answer": "C"}`;
* a line or a sentence: `Answer: C`, `**Answer:** (C) 5 m/s`, `the correct answer is therefore option C`, `I choose C`, `go with (C)`;
* of an option: `Option C is correct`, `(C) is the right answer`;
* a last line of nothing but the option: `C`, `**C.**`, `(C)`, `Option C`, `\textbf{(C)}\ 12`, `C) 5 m/s`. Where the line before shows
  another option it lists them, and is no answer.

What says two letters says none of them (`C or D`), and so does a letter with the text of another option. Another statement in the same
paragraph must say the same, or the answer is hedged, and wrong; so is one that is taken back (`C. Wait, perhaps D`). `A` and `I` are
words where another word follows them, and a small letter counts alone or in brackets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from soundrl.fapo.verify.box import Box, _top_level_boxes, paragraph_of

LETTERS = "ABCDEFGHIJ"
_TEX = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf)?|math(?:bf|rm|it|sf|tt)|boldsymbol|bm|emph|underline|boxed|fbox|displaystyle|q?quad)(?![a-z])\s*"
)
_SIGNS = re.compile(
    r"[*_`{}$~\"“”]|\\[()\[\],;:! ]|\\(?![A-Za-z])|</?[biu]>|</?(?:em|strong)>|(?<![A-Za-z0-9])'(?=\(?[A-J]\)?')|(?<=[A-J)])'(?![A-Za-z])"
)
_S0, _S1 = r"\s{0,5}", r"\s{1,5}"  # bounded: a line of a million spaces is read in linear time
_OF = (
    rf"(?:(?:the|my|our|an?){_S1})?(?:(?:final|correct|right|best|most|appropriate|likely|only|chosen|single){_S1}){{0,4}}"
    r"(?:answer|ans|option|choice|letter|alternative|selection)\b"
)
_IS = (
    rf"(?:{_S1}(?:choice|option|letter))?(?:{_S0}\([^()\n]{{0,30}}\))?"
    rf"{_S0}(?:is|would be|must be|should be|will be|has to be|has got to be|:|：|=|->|→)"
    rf"{_S0}(?:(?:therefore|thus|then|hence|clearly|indeed|simply|just|in fact|definitely|obviously|most likely)[,:]?{_S1})?"
    rf"(?:(?:is|that){_S1})?[:：]?"
)
_LINE = re.compile(rf"(?<![A-Za-z]){_OF}{_IS}[ \t]{{0,5}}", re.IGNORECASE)
_COLON = re.compile(r"[:：]\s*\Z")
_HEADING = re.compile(r"^[#*_ \t]*(?:the )?(?:final |correct )?answer[*_ \t]*$", re.IGNORECASE | re.MULTILINE)
_PICK = re.compile(
    rf"(?<![A-Za-z])(?:I(?:'ll| will| would|'d)?{_S1}(?:therefore |thus )?answer(?: with)?|choose|pick|select|go(?:ing)? with){_S1}",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"(?i:(?:option|choice|answer|letter|statement){_S1})?(?P<open>\(?)(?<![A-Za-z])(?P<letter>[A-J])\b(?P<close>\)?)"
    rf"(?:[.)]?{_S0}[^.\n;]{{0,80}}?)?{_S1}is{_S1}"
    rf"(?:(?:therefore|thus|clearly|indeed|definitely){_S1})?(?:(?:the|our|my){_S1})?(?:(?:only|most|best){_S1}){{0,2}}"
    r"(?:correct|right|answer|best|true one|appropriate)\b"
)
_TAG = re.compile(r"<\s*answer\s*>(.{0,400}?)<\s*/\s*answer\s*>", re.IGNORECASE | re.DOTALL)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(\S[^\n]*)")
_JSON = re.compile(r"""[{,]\s*"(?:answer|final_answer|choice|option|letter)"\s*:\s*("(?:[^"\\\n]|\\.)*"|[^\s,{}"]+)""", re.IGNORECASE)
_LEAD = re.compile(
    rf"\A(?:{_OF}|is\b|[:：]|therefore\b|thus\b|so\b|hence\b|indeed\b|,|option\b|choice\b|letter\b|#+|>|-|\s)*", re.IGNORECASE
)
_LETTER = re.compile(r"(?P<open>[(\[]?)\s*(?P<letter>[A-Ja-j])(?P<close>[)\].:]|\s*[-–—](?=\s)|(?![A-Za-z0-9'’]))")
_CLAUSE = re.compile(r"(?<=[^A-Z(])[.!](?=\s|\Z)|[,;]?\s+(?:because|since|as|so|which|where|due to|given|for)\b|;|\n")
_AFTER_WORD = re.compile(r"\s*(?:\Z|[,.;:)\]—–-]|(?:because|since|as|so|which|where|due|given|is|and|or|not)\b|\()", re.IGNORECASE)
_BACK = re.compile(
    r"\b(?:wait|actually|hmm|oops|sorry|mistake|instead|rather|perhaps|maybe|might|alternatively|could|unsure|not sure|"
    r"plausible|equally|also (?:be|correct|right|valid|possible|true)|either|or|no,|recheck|correction|reconsider|scratch)\b|\?",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"\b(?:not|isn't|never|neither|nor|except|rather than|instead of|unlike|rules? out|eliminates?)\s+"
    r"(?:(?:option|choice|answer)\s+)?\(?([A-J])\b\)?"
)
_MENTION = re.compile(r"(?<![A-Za-z0-9\\'’])\(?([A-J])\)?(?![A-Za-z0-9'’^_=+*/])")
_OPTION_LINE = re.compile(
    r"^[ \t>*_#-]*(?:(?:option|choice)\s+)?\(?([A-J])(?:[).:]|\s*[-–]\s)[*_]*\s*(\S.*)$", re.MULTILINE | re.IGNORECASE
)
_INLINE = re.compile(r"(?<![A-Za-z0-9])(?:\(([A-J])\)|([A-J])[).:])\s*((?:(?!\([A-J]\)|(?<![A-Za-z0-9])[A-J][).:]\s)[^\n])+)")
_LONGEST = 400
"""Characters of a line that are read."""
_END = re.compile(r"[\s.,;:!?]+\Z")
UNCLEAR = "?"
"""Of a statement that names several letters, or none that can be read: it differs from every letter."""


def final_choice(text: str, options: Sequence[str] = ()) -> Box | None:
    """The letter that a response without its thinking part chooses; `hedged` where its paragraph says another; None where there is none.
    `options`: the texts of the options, where they are known.

    >>> final_choice("So 5.\\n\\nThe correct answer is **(C)** 5 m/s."), final_choice("Answer: C or D").hedged, final_choice("C is 5.")
    (Box(text='C', others=(), start=7), True, None)
    """
    is_open = re.search(r"\\(?:boxed|fbox)\s*\{", text) is not None and not _top_level_boxes(text)
    said = [] if is_open else sorted(_statements(text, options))
    if not said:
        return None
    place, letter, end = said[-1]
    start = paragraph_of(text, place)
    others = [other for where, other, _ in said[:-1] if where >= start and other != letter]
    if letter == UNCLEAR or _taken_back(text[end : _paragraph_end(text, end)], letter):
        others.append(UNCLEAR)
    return Box(letter, tuple(dict.fromkeys(others)), start)


def options_of(row: Mapping[str, Any], text: str) -> tuple[str, ...]:
    """The options' texts in order: of the row's `options` or `choices` (a list, an object by letters, or one with a list `text`), else as
    the prompt lists them, `A) …` to `D) …` in lines or one behind the other; empty where neither does.

    >>> options_of({"options": {"A": "3", "B": "4"}}, ""), options_of({}, "2+2?\\n(A) 3\\n(B) 4"), options_of({}, "Points A, B and C")
    (('3', '4'), ('3', '4'), ())
    """
    given = row.get("options", row.get("choices"))
    if isinstance(given, Mapping):
        given = given.get("text", [given[key] for key in LETTERS if key in given])
    if isinstance(given, (list, tuple)) and 1 < len(given) <= len(LETTERS):
        # "A) 3" and "3" are written alike.
        texts = [str(option) for option in given]
        marked = [re.match(rf"\s*\(?{letter}\s*[).:]\s*(.+)", each, re.DOTALL) for letter, each in zip(LETTERS, texts, strict=False)]
        return tuple(found[1].strip() for found in marked if found) if all(marked) else tuple(each.strip() for each in texts)
    for pattern in (_OPTION_LINE, _INLINE):
        found = [([part for part in match.groups() if part][0].upper(), match.groups()[-1].strip()) for match in pattern.finditer(text)]
        starts = [place for place, (letter, _) in enumerate(found) if letter == "A"]
        for start in reversed(starts):
            run = found[start : start + len(LETTERS)]
            length = next((n for n, (letter, _) in enumerate(run) if letter != LETTERS[n]), len(run))
            if length > 1:
                return tuple(option.rstrip(" ,;") for _, option in run[:length])
    return ()


def letter_of(reference: str, options: Sequence[str] = ()) -> str | None:
    """The letter that a reference stands for: itself (`C`, `(C)`, `C) 5 m/s`), or that of the one option with its text; None where it is
    neither.

    >>> letter_of("(b)"), letter_of("5 m/s", ["4 m/s", "$5$ m/s"]), letter_of("6 m/s", ["4 m/s", "5 m/s"])
    ('B', 'B', None)
    """
    if found := _of_text(reference, options):
        return found
    letter, _ = _read(reference, options)
    return letter if letter and letter != UNCLEAR and (not options or LETTERS.index(letter) < len(options)) else None


def _bare(text: str) -> str:
    """Without Markdown and TeX's styles, in one line of the same words."""
    return _SIGNS.sub("", _TEX.sub(" ", text))


@lru_cache(maxsize=1024)
def _key(text: str) -> str:
    return _END.sub("", re.sub(r"\s+", "", _bare(text)).lower())


def _of_text(value: str, options: Sequence[str]) -> str:
    """The letter of the one option that has this text."""
    if len(value) > 1000:
        return ""
    found = [letter for letter, option in zip(LETTERS, options, strict=False) if _key(option) == _key(value)]
    return found[0] if len(found) == 1 and _key(value) not in [letter.lower() for letter in LETTERS] else ""


def _read(value: str, options: Sequence[str]) -> tuple[str, bool]:
    """The letter that a value states, `UNCLEAR` where several or another option's text, empty where none; and whether there is no more than
    the letter, or its option."""
    value = _bare(value.strip())
    value = _LEAD.sub("", value, count=1).lstrip()
    if whole := _of_text(value, options):
        return whole, True
    match = _LETTER.match(value)
    close = match["close"].strip() if match else ""
    letter, rest = ("", value) if match is None else (match["letter"].upper(), value[match.end() :])
    if match is not None and not _stands_alone(match, rest):
        letter = ""
    if not letter:
        negated = _MENTION.search(value) and re.match(r"(?:not|neither|either|both|none)\b", value, re.IGNORECASE)
        return (UNCLEAR if negated else ""), False
    if _of_text(rest, options) == letter:
        return letter, True
    clause = _CLAUSE.split(rest, maxsplit=1)[0]
    beside = re.match(r"\W*(?:then|vs|versus|plus|with|to)?\W*([A-J])\W*\Z", rest.partition("\n")[0])
    of_letter = clause if close in (")", "") else rest.partition("\n")[0]
    if (beside and beside[1] != letter) or _other_text(rest, letter, options) or _several(of_letter, letter):
        return UNCLEAR, False
    if rest.lstrip(" *)").startswith("?"):
        return UNCLEAR, False
    return letter, not rest.strip(" .)") or (close != "" and not options)


def _stands_alone(match: re.Match[str], rest: str) -> bool:
    """Whether it is a letter, and no word or name: `A` and `I` before another word are words, small letters too."""
    marked = match["close"].strip() != ""
    if marked or not rest.strip():
        return True
    if match["letter"] in "AI" or match["letter"].islower():
        return _AFTER_WORD.match(rest) is not None
    return re.match(r"\s*[=+^_/*<>]", rest) is None or re.match(r"\s*/\s*\(?[A-J]\b", rest) is not None


def _several(rest: str, letter: str) -> bool:
    """Whether another letter is offered beside the first."""
    rest = _NOT.sub(lambda match: " " if match[1] != letter else match.group(), rest)
    joined = re.match(
        r"\s*\)?\s*(?:,|/|&|\||or|and|and/or|and also)+\s*(?:(?:option|choice|or|and)\s+)*\(?([A-J])(?![A-Za-z0-9'])", rest, re.IGNORECASE
    )
    later = re.search(
        r"(?:\bor\b|/|\band\b)\s*(?:(?:option|choice|maybe|perhaps|possibly|even)\s+)*(?:\(([A-J])\)|([A-J])(?:[).:]|\s*\Z))", rest
    )
    marked = [found[1] for found in re.finditer(r"\(([A-J])\)", rest) if found[1] != letter]
    return any(found and next(filter(None, found.groups())).upper() != letter for found in (joined, later)) or bool(marked)


def _other_text(rest: str, letter: str, options: Sequence[str]) -> bool:
    """Whether the text behind a letter is that of another option."""
    lines = rest.strip(" )-–—:.(").partition("\n")[0]
    if not options or not lines.strip():
        return False
    said, own = _key(lines), _key(options[LETTERS.index(letter)]) if LETTERS.index(letter) < len(options) else ""
    others = [_key(option) for other, option in zip(LETTERS, options, strict=False) if other != letter]
    if own and said.startswith(own):
        return any(other.startswith(own) and said.startswith(other) and len(other) > len(own) for other in others)
    return any(other and re.match(re.escape(other) + r"(?![a-z0-9])", said) for other in others)


def _taken_back(rest: str, letter: str) -> bool:
    """Whether what follows in the paragraph names another letter, or the same, in doubt."""
    rest = _bare(rest)
    rest = _NOT.sub(lambda match: " " if match[1] != letter else f" wait {LETTERS[0] if letter != 'A' else 'B'} ", rest)
    others = [found for found in _MENTION.finditer(rest) if found[1] != letter and not _is_word(found, rest)]
    return bool(others) and _BACK.search(rest) is not None


def _is_word(match: re.Match[str], text: str) -> bool:
    return match[1] in "AI" and match.group() == match[1] and re.match(r"\s+[a-z]", text[match.end() :]) is not None


def _paragraph_end(text: str, place: int) -> int:
    match = re.compile(r"\n[ \t\r]*\n").search(text, place)
    return len(text) if match is None else match.start()


def _statements(text: str, options: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    """(place, letter, end) of all that state a choice."""
    for start, content, end in _top_level_boxes(text):
        yield start, _read(content, options)[0] or UNCLEAR, end
    for pattern in (_TAG, _HASHES):
        for match in pattern.finditer(text):
            yield match.start(), _read(match[1], options)[0] or UNCLEAR, match.end()
    for match in _JSON.finditer(text):
        try:
            value = str(json.loads(match[1]))
        except ValueError:
            value = match[1]
        yield match.start(), _read(value, options)[0] or UNCLEAR, match.end()
    for pattern in (_LINE, _HEADING, _PICK):
        for match in pattern.finditer(text):
            yield from _sentence(text, match, options)
    for match in _NAMED.finditer(_flat(text)):
        if not re.search(r"\b(?:not|isn't|n't|incorrect|wrong|if|whether|or|nor|neither|and|either|than)\b", match.group()) and not (
            match["letter"] in "AI"
            and not match["open"]
            and not re.match(r"(?:option|choice|answer|letter|statement)\b|[AI]\s+is\b", match.group(), re.I)
        ):
            yield match.start(), match["letter"].upper(), match.end()
    yield from _last_line(text, options)


def _flat(text: str) -> str:
    """Of the same length, with spaces for Markdown."""
    return re.sub(r"[*_`$]", " ", text)


def _sentence(text: str, match: re.Match[str], options: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    """What a line or sentence says behind its beginning."""
    end = text.find("\n", match.end(), match.end() + _LONGEST)
    line = text[match.end() : end if end >= 0 else match.end() + _LONGEST]
    if not line.strip(" *_$`\\[(") and end >= 0:  # in the next line that is not empty
        following = re.compile(r"\s{1,20}(\S[^\n]{0,400})").match(text, end)
        line, end = (following[1], following.end()) if following else ("", end)
    elif end < 0:
        end = match.end() + len(line)
    if r"\boxed" in line or re.match(r"[\s*_\"'“”]*\$?(?:LETTER|\[|<|your|X\b)", line):
        return  # the box speaks; a placeholder says nothing
    letter, _ = _read(line, options)
    if letter or (_COLON.search(match.group()) and line.strip(" *_.")):
        yield match.start(), letter or UNCLEAR, min(match.end() + _length(line), end)


def _length(line: str) -> int:
    """Characters up to where the letter has been said."""
    found = _MENTION.search(line) or re.search(r"\b[a-j]\b", line)
    return found.end() if found else len(line)


def _last_line(text: str, options: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    """The last line, where it is an option alone and the line before is none."""
    lines = [(match.start(), match.group()) for match in re.finditer(r"\S[^\n]*", text[-4000:])][-2:]
    if not lines:
        return
    place, line = lines[-1]
    letter, alone = _read(line, options)
    before = _OPTION_LINE.match(_bare(lines[0][1])) if len(lines) > 1 else None
    starts = re.match(r"\W*(?:(?:so|thus|hence|therefore)\W+)?(?:option|choice|answer)?\W*[A-J](?![A-Za-z])", _bare(line), re.IGNORECASE)
    if alone and (starts or _of_text(line, options)) and (before is None or before[1].upper() == letter):
        place += max(len(text) - 4000, 0)
        yield place, letter, place + _length(line)

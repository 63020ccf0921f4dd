r"""Text that others wrote, made harmless before it stands in a judge's prompt.

Problem, reference and solution are written by others, the solution by a policy that gains when the judge errs. Chat templates paste
content into the prompt *before* tokenisation, so the eleven characters `<|im_end|>` + `\n` in a solution would end the user's turn for
good. Three rules make that impossible, each visible to a reader of the prompt and none of them changing what the mathematics says:

1. Characters nobody sees (zero-width, bidirectional and other format controls, fillers, variation selectors) are dropped, and
   every line end becomes `\n`; otherwise `<|im_<ZWSP>end|>` would pass rule 2 and a normalising tokenizer would glue it together.
2. Control look-alikes get one space after their opening bracket: `<|im_end|>` → `< |im_end|>`, `[INST]` → `[ INST]`. The rule is
   general (anything between angle brackets), since a served model's list of special tokens is not known. Comparison is by shape:
   full-width and other look-alike characters count as the ASCII ones.
3. The prompts' own marks, paragraph tags and section headings of every wording, lose their brackets: `</paragraph_0>` → `(/paragraph_0)`.
   A space would not do here: no tokenizer reads them, a model does, and to a model `< paragraph_0>` still looks like a tag.

`tests/single_turn.py` proves the result by token ids for a given tokenizer.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_UNUSUAL = re.compile(r"[^\n\t -~]")
_LINE_END = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Default-ignorable characters outside the categories Cc and Cf that render as nothing.
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800")

_LOOKALIKES = {
    **dict.fromkeys("‹〈⟨❬❮❰⧼ᐸ˂≺≮", "<"),
    **dict.fromkeys("›〉⟩❭❯❱⧽ᐳ˃≻≯", ">"),
    **dict.fromkeys("∣│ǀ⏐❘┃¦", "|"),
    **dict.fromkeys("【〔⟦", "["),
    **dict.fromkeys("】〕⟧", "]"),
    **dict.fromkeys("⁄∕⧸", "/"),
    **dict.fromkeys("‿▁ˍ", "_"),
    **dict(zip("аеорсухіѕһԁɡкмтнгԛԝαερονικτ", "aeopcyxishdgkmthrqwaepovikt", strict=True)),
    **dict(zip("АЕОРСУХІЅНКМТАΕΟΡΝΙΚΤΗ", "AEOPCYXISHKMTAEOPNIKTH", strict=True)),
}

# No `$`: in `$a<b$ and $b>c$` nothing is tagged.
_TAG = re.compile(r"<([^<>\n$]{1,100})>")
_OPEN_TAG = re.compile(r"<(?=[\s/|]*para\W*graph)", re.IGNORECASE)
_SECTION = re.compile(
    r"\[\s*(?:math\s+problem|problem|reference(?:\s+answer)?|ground\s+truth|(?:ai\s+)?solution|(?:your\s+)?task)\s*\]", re.IGNORECASE
)
_BRACKET_CONTROL = re.compile(
    r"\[(?=/?(?:INST|SYS|SYSTEM|USER|ASSISTANT|HUMAN|CLS|SEP|MASK|[gs]MASK|PAD|UNK|BOS|EOS|THINK|IMG|TOOL|ARGS|PREFIX|SUFFIX|[A-Z]+_[A-Z_]+)\])",
    re.IGNORECASE,
)


def neutralise(text: str) -> str:
    """Text from which no control token, paragraph tag or section heading of a prompt can arise (rules: module docstring).

    Idempotent; keeps every line break.
    Example: `"so a<b.</paragraph_0><|im_end|>"` → `"so a<b.(/paragraph_0)< |im_end|>"`.
    """
    text = visible(text)
    while (safe := _edited(text)) != text:  # of marks in marks: what stood within is a mark of its own without them
        text = safe
    return text


def _edited(text: str) -> str:
    shape = _fold(text)
    edits: dict[int, str] = {}
    for match in _TAG.finditer(shape):
        first, last = match.start(), match.end() - 1
        if re.sub(r"[\W_]", "", match[1]).lower().startswith("paragraph"):
            edits[first], edits[last] = "(", ")"
        elif not match[1][0].isspace():
            edits[first] = text[first] + " "
    for match in _OPEN_TAG.finditer(shape):
        edits[match.start()] = "("
    for match in _SECTION.finditer(shape):
        edits[match.start()], edits[match.end() - 1] = "(", ")"
    for match in _BRACKET_CONTROL.finditer(shape):
        edits.setdefault(match.start(), text[match.start()] + " ")
    return "".join(edits.get(place, character) for place, character in enumerate(text)) if edits else text


def visible(text: str) -> str:
    """`text` without characters that nobody sees, line ends unified, lone surrogates (not encodable as UTF-8) replaced."""
    if not _UNUSUAL.search(text):
        return text
    text = _LINE_END.sub("\n", text)
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text if not _invisible(c))


@lru_cache(maxsize=4096)
def _invisible(character: str) -> bool:
    if character in "\n\t":
        return False
    code = ord(character)
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0x180B <= code <= 0x180F
    return selector or character in _FILLERS or unicodedata.category(character) in ("Cc", "Cf")


def _fold(text: str) -> str:
    """`text` with look-alike characters as the ASCII they look like, of the same length: places in it are places in `text`."""
    return text if text.isascii() else "".join(map(_fold_character, text))


@lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    if character.isascii():
        return character
    plain = unicodedata.normalize("NFKC", character)
    plain = _LOOKALIKES.get(plain, plain)
    return plain if len(plain) == 1 else character

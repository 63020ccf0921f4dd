r"""Cuts the unit off the end of an answer: `5 \text{ cm}^2`, `12 square inches`, `\$5`, `3 \mathrm{km/h}`.

A unit in `\text{…}` may be any words except those that change the value (`million`) or the meaning (`or`, `not`, `approximately`); a unit
in plain letters must stand in the table, since `7ab` is a product. Nothing is converted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "g": "gram gramme",
    "kg": "kilogram kilo",
    "lb": "pound lbs",
    "oz": "ounce",
    "l": "liter litre",
    "ml": "milliliter millilitre",
    "s": "second sec secs",
    "min": "minute mins",
    "h": "hour hr hrs",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr yrs",
    "$": "dollar usd",
    "€": "euro eur",
    "£": "gbp",
    "cent": "",
    "mph": "mi/h",
    "km/h": "kmh kph",
    "m/s": "",
    "unit": "",
    "people": "person",
    "degree": "",
    "rad": "radian",
    "yuan": "rmb",
}
_CANONICAL = {alias: name for name, aliases in _NAMES.items() for alias in (name, *aliases.split())}
_SCALE = {"hundred", "thousand", "million", "billion", "trillion", "dozen", "score", "k"}
_MEANING = frozenset(
    "or and not no approximately approx about roughly around at least most more less than over under between from to mod modulo undefined "
    "none wrong maybe plus minus times half if is but negative positive squared cubed base infinity nan except either".split()
)
_LINKS = {"square", "sq", "cubic", "per"}
_POWER = r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?"
_TEXT_UNIT = re.compile(rf"(.*?[^\s\\])\s*((?:\\text\{{[^{{}}]*\}}{_POWER}[\s/.]*)+)\Z", re.DOTALL)
_PLAIN_UNIT = re.compile(rf"(.*?[\d)}}])\s*([A-Za-z][A-Za-z /]*{_POWER})\Z", re.DOTALL)
_CURRENCY = re.compile(r"([-+]?)\s*(\\\$|[€£])\s*(.+)|(.+?)\s*(\\\$|[€£])", re.DOTALL)


@dataclass(frozen=True)
class Unit:
    """A unit as it was written, and the scale words in it."""

    name: str = ""
    scale: tuple[str, ...] = ()


def cut_unit(text: str) -> tuple[str, Unit]:
    """Returns the text without its unit, and the unit; where the words at the end are no unit, nothing is cut."""
    currency = _CURRENCY.fullmatch(text)
    if currency:
        rest, unit = _cut_words((currency[1] or "") + (currency[3] or currency[4] or ""))
        sign = (currency[2] or currency[5]).lstrip("\\")
        return rest, Unit(sign if canonical_unit(unit.name) in ("", canonical_unit(sign)) else f"{sign} {unit.name}", unit.scale)
    return _cut_words(text)


def _cut_words(text: str) -> tuple[str, Unit]:
    match = _TEXT_UNIT.fullmatch(text)
    if match:
        name = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", match[2])
    else:
        match = _PLAIN_UNIT.fullmatch(text)
        # A single plain letter is a variable: `7 m` is a product, `7\text{ m}` is a length.
        if not match or len(match[2].strip()) == 1 or not all(_is_known(word) for word in _words(match[2])):
            return text, Unit()
        name = match[2]
    words = _words(name)
    if _MEANING.intersection(words) or re.search(r"\d", re.sub(r"\^\s*\{?\s*[23]", "", name)):
        return text, Unit()
    scale = tuple(word for word in words if word.rstrip("s") in _SCALE)
    return match[1].strip(), Unit(" ".join(word for word in name.split() if word.lower().rstrip("s") not in _SCALE), scale)


def canonical_unit(name: str) -> str:
    """One spelling for a unit: `square centimeters`, `sq cm` and `cm^2` are the same."""
    text = name.lower().replace("{", "").replace("}", "").replace(" per ", "/")
    power = re.search(r"\^\s*([23])", text)
    text = re.sub(r"\^\s*[23]", " ", text)
    words = text.replace("/", " / ").replace(".", " ").split()
    exponent = power[1] if power else ""
    if words and words[0] in ("square", "sq", "cubic"):
        exponent = "3" if words.pop(0) == "cubic" else "2"
    parts = "".join(_CANONICAL.get(_singular(word), _singular(word)) + " " for word in words)
    joined = parts.replace(" / ", "/").strip()
    return _CANONICAL.get(joined, joined) + exponent


def _is_known(word: str) -> bool:
    return word in _LINKS or word in _SCALE or _singular(word) in _CANONICAL


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 2 and word not in _CANONICAL else word


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())

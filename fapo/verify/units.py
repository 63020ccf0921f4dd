r"""Cuts the unit off the end of an answer: `5 \text{ cm}^2`, `12 square inches`, `\$5`, `3 \mathrm{km/h}`, `18 \text{ red marbles}`.

Words behind a number are a unit where one of them is a unit of the table or a plural, and none of them changes the value (`million`,
`halves`, `below`, `squared`, `mod`): `7 \text{ tenths}` is no 7. In plain letters the words must be those of the table, or be longer than
a product of variables. Nothing is converted.
"""

from __future__ import annotations

import re

# The name that stands for each, and its other spellings.
_NAMES = (
    "mm millimeter millimetre, cm centimeter centimetre, m meter metre, km kilometer kilometre, in inch inche, ft foot feet, yd yard, "
    "mi mile, g gram gramme, kg kilogram kilo, lb pound lbs, oz ounce, l liter litre, ml milliliter millilitre, s second sec secs, "
    "min minute mins, h hour hr hrs, $ dollar usd buck, € euro eur, £ gbp, mph mi/h mile/h, km/h kmh kph, degree deg, rad radian, "
    "people person, yuan rmb"
)
_CANONICAL = {alias: names.split()[0] for names in _NAMES.split(",") for alias in names.split()}
_KNOWN = set(_CANONICAL).union(
    "day week month year yr yrs cent unit m/s children men women fish sheep mice teeth am pm ampere volt watt joule newton hertz hz "
    "kelvin celsius fahrenheit acre gallon quart pint cup ton tonne byte bit mole mol pascal yen peso rupee".split()
)
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety"
CHANGES_THE_VALUE = re.compile(
    rf"\b(?:(?:{_SMALL.replace(' ', '|')}|\w+teen|hundred|thousand|\w*illion|\w+tie|dozen|score|gross|pair of|couple|k|lakh|crore)s?|"
    r"hal(?:f|ves)|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|\w+teenth|\w+tieth|\w*hundredth|"
    r"\w*thousandth|\w+illionth|th|nth)s?|twice|thrice|double[sd]?|tripled?|quadrupled?|squared|cubed|factorials?|power|root|squares? of|"
    r"cubes? of|sqrt|log\w*|ln|sin|cos|tan|exp|inverse|(?:reciprocal|conjugate|complement|opposite)s?|absolute|modul\w+|mod|base|binary|"
    r"octal|hex\w*|negat\w+|minus|plus|multipl\w+|divi\w+|over|under|above|below|less|greater|smaller|off|to|between|than|least|most|about|"
    r"approx\w*|around|roughly|nearly|almost|or|and|not|no|non|none|nor|neither|either|is|are|if|but|except|without|undefined|infinit\w*|nan|"
    r"wrong|maybe|perhaps|possibly|incorrect|debt|loss(?:es)?|lost|deficit|owed|behind|ago|before|bce?|underground|backwards?|down|percent\w*|"
    r"per ?cent|per ?mille?|basis|pi)\b"
)
"""Words with which a number is another number, or none."""
_NO_PLURAL = re.compile(r"(?:this|thus|was|has|does|its|us|as|plus|perhaps|always|yes|\w*(?:ss|ous|us|is))\Z")
_LINKS = {"square", "sq", "cubic", "cu", "per"}
_POWER = r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?"
_TEXT_UNIT = re.compile(rf"(.*?[^\s\\])\s*((?:\\text\{{[^{{}}]*\}}{_POWER}[\s/.]*)+)\Z", re.DOTALL)
_PLAIN_UNIT = re.compile(rf"(.*?[\d)}}])\s*([A-Za-z][A-Za-z /.]*{_POWER})\Z", re.DOTALL)
_CURRENCY = re.compile(r"([-+]?)\s*(\\\$|[€£¥])\s*(.+)|(.+?)\s*(\\\$|[€£¥])", re.DOTALL)
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREE = r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b"
_DEGREES_AT_END = re.compile(rf"(.*\S)\s*(?:{_DEGREE})\s*(?:(?:\\text\{{)?\s*([CFK])\}}?)?", re.DOTALL)
_DEGREES = rf"{_DEGREE}|\\text\{{\s*degrees?\s*\}}|(?<=\d)\s*degrees?\b"


def cut_unit(text: str) -> tuple[str, str]:
    """Returns the text without the words at its end, and the unit that they are; empty = none.

    Words that change the value begin with `!` there, words that are nobody's unit with `?`. Degrees are a unit wherever they stand, except
    in a trigonometric function, where math-verify would read them as radians.
    """
    if _TRIGONOMETRY.search(text):
        text = re.sub(rf"(\d+(?:\.\d+)?)\s*(?:{_DEGREES})", r"(\1\\pi/180)", text)
    text = re.sub(r"\(\s*(\\text\{[^{}]*\})\s*\)\Z", r"\1", text)  # 12 (hours)
    if currency := _CURRENCY.fullmatch(text):
        text, unit = _cut_words((currency[1] or "") + (currency[3] or currency[4] or ""))
        sign = (currency[2] or currency[5]).lstrip("\\")
        unit = unit if unit.startswith(("!", "?")) else sign if unit in ("", sign) else f"{sign} {unit}"
    elif degrees := _DEGREES_AT_END.fullmatch(text):
        text, unit = degrees[1], f"degree {degrees[2] or ''}".strip()
    else:
        text, unit = _cut_words(text)
    return re.sub(_DEGREES, " ", text).strip(), unit


def _cut_words(text: str) -> tuple[str, str]:
    match = _TEXT_UNIT.fullmatch(text)
    if not match:
        match = _PLAIN_UNIT.fullmatch(text)
        # A single plain letter is a variable: `7 m` is a product, `7\text{ m}` is a length.
        if not match or len(match[2].strip()) == 1 or not all(_is_known(word) or len(word) > 3 for word in _words(match[2])):
            return text, ""
    value, name = match[1].strip(), re.sub(r"\\text\{([^{}]*)\}", r" \1 ", match[2])
    words = _words(name)
    # M, B and T are millions, billions and trillions.
    if re.search(r"\b[MBT]\b", name) or CHANGES_THE_VALUE.search(" ".join(words)) or re.search(r"\d", re.sub(r"\^\s*\{?\s*[23]", "", name)):
        return value, "!" + " ".join(name.lower().split())
    known = any(_is_known(word) or (len(word) > 3 and word.endswith("s") and not _NO_PLURAL.match(word)) for word in words)
    return value, ("" if known else "?") + _canonical(name)


def _canonical(name: str) -> str:
    """One spelling for a unit: `square centimeters`, `sq cm` and `cm^2` are the same."""
    text = re.sub(r" (?:per|an?) ", "/", re.sub("[{}]", "", name.lower()))
    power = re.search(r"\^\s*([23])", text)
    exponent = power[1] if power else ""
    words = re.sub(r"\^\s*[23]", " ", text).replace("/", " / ").replace(".", " ").split()
    if words and words[0] in ("square", "sq", "cubic", "cu"):
        exponent = "3" if words.pop(0).startswith("cu") else "2"
    joined = " ".join(_CANONICAL.get(_singular(word), _singular(word)) for word in words).replace(" / ", "/")
    return _CANONICAL.get(joined, joined) + exponent


def _is_known(word: str) -> bool:
    return word in _LINKS or _singular(word) in _KNOWN


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 2 and word not in _CANONICAL else word


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())

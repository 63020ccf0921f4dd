"""How the report writes figures, intervals, and the names of arms and measures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from claim import Arm, Claim, Contrast, Row

MEASURES = {
    "right": "right",
    "sound": "right and sound",
    "flawed": "flawed ÷ right",
    "wrong": "wrong",
    "lines": "lines a right solution",
    "false": "with a false equation ÷ right",
    "skip": "with a skipped line ÷ right",
    "guess": "guessed ÷ right",
    "past": "groups past the shift",
    "rho": "ρ = sound ÷ wrong",
    "tokens": "tokens a response",
    "seconds": "seconds a step",
    "x_known": "step ÷ step with verdicts known",
    "hidden": "judging hidden",
    "f1": "F1",
}
TENTHS = ("points", "steps", "%", "tokens", "groups")
"""Units of which a tenth is exact enough."""


def places(values: Iterable[float], unit: str = "") -> int:
    """Digits after the point: three below 10, one below 1,000 and of `TENTHS`.

    >>> places([0.2, -0.31]), places([12.5]), places([0.2], "points"), places([math.inf])
    (3, 1, 1, 3)
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 10 or unit in TENTHS else 3


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """As the pages write it; what is not finite is a dash.

    >>> number(0.2014), number(-0.0996, signed=True), number(0.2, 1, signed=True), number(-0.0001), number(1234.5, 0), number(math.nan)
    ('.201', '−.100', '+.2', '.000', '1,234', '–')
    """
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):,.{digits}f}"
    nothing = not text.strip("0.,")
    text = text[1:] if text.startswith("0.") else text
    return text if nothing else f"−{text}" if value < 0 else f"+{text}" if signed else text


def interval(mean: float, low: float, high: float, signed: bool = False, unit: str = "") -> str:
    """Mean and 95 % interval, by the digits of the mean.

    >>> interval(0.2, 0.16, 0.24, signed=True), interval(20.5, -10.7, 51.7, unit="points"), interval(0.5, math.nan, math.nan)
    ('+.200 [.160, .240]', '20.5 [−10.7, 51.7]', '.500 [–, –]')
    """
    digits = places([mean], unit)
    return f"{number(mean, digits, signed)} [{number(low, digits)}, {number(high, digits)}]"


def probability(p: float | None) -> str:
    """
    >>> probability(0.0078125), probability(0.0001), probability(1.0), probability(None)
    ('.008', '< .001', '1', '')
    """
    return "" if p is None or not math.isfinite(p) else "< .001" if p < 0.0005 else "1" if p >= 0.9995 else number(p)


def chance(name: str, p: float | None) -> str:
    """
    >>> chance("Holm p", 0.0078125), chance("p", 0.0001)
    ('Holm p = .008', 'p < .001')
    """
    said = probability(p)
    return f"{name} {said if said.startswith('<') else f'= {said}'}"


def shown(contrast: Contrast) -> str:
    """Mean and interval of a contrast, by its unit."""
    return interval(contrast.mean, contrast.low, contrast.high, signed=contrast.differs, unit=contrast.unit)


def arm(name: str) -> str:
    """
    >>> [arm(name) for name in ("lam=0", "lam=2/3", "step-ratio+lenient", "false_alarms=0.4", "blind=skip", "judge=warm", "overlap/0.5")]
    ['λ = 0 (GRPO)', 'λ = 2/3', 'step ratio, lenient', 'false alarms 0.4', 'blind to skip', 'judge: warm', 'overlap, 0.5']
    """
    kind, _, lenient = name.partition("+")
    for pattern, text in (
        (r"lam=0", "λ = 0 (GRPO)"),
        (r"lam=(.*)", r"λ = \1"),
        (r"leave", "flawed leave"),
        (r"step-ratio", "step ratio"),
        (r"blind=(.*)", r"blind to \1"),
        (r"judge=(.*)", r"judge: \1"),
        (r"(false_alarms|misses)=(.*)", r"\1 \2"),
        (r"(overlap|serial)/(.*)", r"\1, \2"),
    ):
        if found := re.fullmatch(pattern, kind):
            kind = found.expand(text).replace("_", " ")
            break
    return f"{kind}, {lenient}" if lenient else kind


def measure(name: str) -> str:
    """
    >>> measure("p2/sound"), measure("exact/swap"), measure("unseen/f1"), measure("anything")
    ('right and sound, tens digit', 'exact location, swap', 'F1, unseen kinds', 'anything')
    """
    room, _, rest = name.partition("/")
    if rest and room in ("p2", "unseen", "exact"):
        return {"p2": f"{measure(rest)}, tens digit", "unseen": f"{measure(rest)}, unseen kinds", "exact": f"exact location, {rest}"}[room]
    return MEASURES.get(name, name.replace("_", " "))


def counted(sizes: Iterable[int]) -> str:
    """
    >>> counted([8, 8]), counted([8, 6]), counted([])
    ('8', '6–8', '0')
    """
    found = sorted(set(sizes)) or [0]
    return f"{found[0]}" if len(found) == 1 else f"{found[0]}–{found[-1]}"


def ran(rows: Iterable[Row]) -> str:
    """
    >>> ran([{"start": "default"}, {"start": "timing"}, {"start": "critic"}]), ran([])
    ('2 runs and 1 timings', '0 runs')
    """
    timed = [row["start"] == "timing" for row in rows]
    return f"{timed.count(False)} runs" + (f" and {timed.count(True)} timings" if any(timed) else "")


def counting(claims: Iterable[Claim]) -> str:
    """What n counts, claim by claim where it is no seed: `n counts seeds, of E8 repeats`."""
    others = [f", of {claim.id} {claim.counted}" for claim in claims if claim.counted != "seeds"]
    return f"n counts seeds{''.join(others)}"


def seeds(claim: Claim) -> str:
    """n of a claim: of its primary contrasts, else of all of them, else of its arms.

    >>> seeds(Claim(id="E1", claim="", source="", verdict="not run", because=""))
    '0'
    """
    primary = [contrast for contrast in claim.contrasts if contrast.primary]
    parts: tuple[Contrast | Arm, ...] = tuple(primary or claim.contrasts or claim.arms)
    return counted(part.n for part in parts)

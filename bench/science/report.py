"""The report that a reviewer reads: what the paper says, what came out over seeds, and how it was made.

    python bench/science/report.py                                # runs/science/report/index.html and report.md
    python bench/science/report.py --out bench/results/science    # the committed one

From bench/results/science.jsonl alone: no date and no commit of the day it is written, so the same rows give the same bytes. Of a file with
rows of both versions the full one is reported; `--quick` takes the short one, and so does a file that has no other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import words
from claim import Claim, Contrast, Row
from figures import FIGURES, Figure
from page import Block, Bullets, Pictures, Section, Table, as_html, as_md
from panels import forest

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "bench" / "results" / "science.jsonl"
MUST_HAVE = ("run", "start", "arm", "seed", "quick")
PROTOCOL = "../../../bench/science/protocol.md"
"""Of the page's folder, runs/science/report or bench/results/science."""


@dataclass(frozen=True)
class Arguments:
    rows: Path = ROWS
    """The runs, a JSON object a line."""
    out: Path = ROOT / "runs" / "science" / "report"
    """Folder of index.html and report.md."""
    quick: bool = False
    """Report the short version's runs, which have fewer seeds and steps."""


def read(path: Path, quick: bool = False) -> list[Row]:
    """The rows of one version, in an order that does not hang on which run ended first. Raises SystemExit with one line and its place."""
    rows: dict[tuple[bool, str], Row] = {}
    places: dict[tuple[bool, str], int] = {}
    if not path.is_file():
        raise SystemExit(f"error: no {path}; `make science` writes it")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"error: {path.name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SystemExit(f"{where}: not JSON, {error}") from None
        if not isinstance(row, dict) or (missing := [name for name in MUST_HAVE if name not in row]):
            raise SystemExit(f"{where}: {'no object' if not isinstance(row, dict) else f'no {missing[0]}'}")
        key = bool(row["quick"]), str(row["run"])
        if key in rows:
            raise SystemExit(f"{where}: run {row['run']} stands in line {places[key]} already")
        rows[key], places[key] = row, number
    quick = quick or not any(not short for short, _ in rows)
    return sorted((row for (short, _), row in rows.items() if short == quick), key=lambda row: (row["start"], row["arm"], row["seed"]))


def digest(rows: Iterable[Row]) -> str:
    """Of the rows, whatever their order: what a committed report was made from."""
    return hashlib.sha256("\n".join(sorted(json.dumps(row, sort_keys=True) for row in rows)).encode()).hexdigest()[:16]


def what(contrast: Contrast) -> str:
    return f"{contrast.what} ({contrast.unit})" if contrast.unit else contrast.what


def outcome(claim: Claim) -> str:
    """The primary outcomes in one cell: `sound: λ = 1 − λ = 0 +.201 [.164, .238], p = .008`."""
    primary = [contrast for contrast in claim.contrasts if contrast.primary and contrast.n]
    tested = [words.chance("p", c.p) if c.holm is None else words.chance("Holm p", c.holm) for c in primary]
    parts = [f"{what(c)} {words.shown(c)}{f', {p}' if c.differs else ''}" for c, p in zip(primary, tested, strict=True)]
    return "; ".join(parts) or ("–" if claim.verdict == "not run" else claim.because)


def anchors(claims: Sequence[Claim]) -> list[str]:
    """A name a claim: its id, numbered where several claims share one."""
    names, seen = [], Counter()
    for claim in claims:
        seen[claim.id] += 1
        names.append(claim.id if seen[claim.id] == 1 else f"{claim.id}-{seen[claim.id]}")
    return names


def contrasts(claim: Claim) -> list[Block]:
    """The table of contrasts, and a line of dots for each, by unit, where there are several seeds."""
    if not claim.contrasts:
        return []
    paired, of = all(contrast.differs for contrast in claim.contrasts), claim.counted
    head = [f"contrast{', paired by seed' if paired else ''}", "mean [95 % interval]", "exact p", "Holm p", "n", "values"]
    rows = []
    for contrast in claim.contrasts:
        digits = words.places(contrast.values, contrast.unit)
        seen = [words.number(value, digits, signed=contrast.differs) for value in contrast.values]
        each = f"each {seen[0]}" if contrast.unit == "runs" and len({*seen}) == 1 else " ".join(seen)
        name = f"{what(contrast)}{', primary' if contrast.primary else ''}"
        p = words.probability(contrast.p) if contrast.differs else ""
        rows.append([name, words.shown(contrast), p, words.probability(contrast.holm), str(contrast.n), each])
    blocks: list[Block] = ["### Contrasts", Table(head, rows)]
    panels, sizes = [], []
    for unit in dict.fromkeys(contrast.unit for contrast in claim.contrasts):
        lines = {c.what: (c.values, c.mean, c.low, c.high) for c in claim.contrasts if c.unit == unit and c.n and math.isfinite(c.mean)}
        if lines:
            each = "Each seed's difference" if paired else f"Each of the {of}"
            panels.append((f"{each}{unit and f', {unit}'}", forest(unit or "difference", lines)))
            sizes += [len(values) for values, *_ in lines.values()]
    caption = f"A dot is one of the {of}, the marker the mean with its 95 % t interval. n = {words.counted(sizes)} {of}."
    return [*blocks, Pictures(panels, caption)] if panels else blocks


def arms(claim: Claim) -> list[Block]:
    if not claim.arms:
        return []
    measures = list(dict.fromkeys(name for arm in claim.arms for name in arm.figures))
    rows = [
        [arm.label, str(arm.n), *(words.interval(*arm.figures[name]) if name in arm.figures else "–" for name in measures)]
        for arm in claim.arms
    ]
    return [f"### Arms: mean over {claim.counted} [95 % t interval], not paired", Table(["arm", "n", *map(words.measure, measures)], rows)]


def section(claim: Claim, name: str, pictures: Sequence[Figure]) -> Section:
    """One claim, with the figures that belong to it."""
    blocks: list[Block] = [
        f"**{claim.verdict}**, n = {words.seeds(claim)} {claim.counted}. Claimed in: {claim.source or 'this project'}.",
        claim.because or "Nothing to say yet.",
    ]
    blocks += contrasts(claim) + arms(claim)
    blocks += pictures
    if claim.notes:
        blocks += ["### What limits it", Bullets(claim.notes)]
    return Section(name, f"{claim.id}. {claim.claim}", blocks)


def head(claims: Sequence[Claim], rows: Sequence[Row]) -> Section:
    seeds = len({row["seed"] for row in rows})
    version = "the short version, with fewer seeds and steps" if rows and all(row["quick"] for row in rows) else "the full version"
    table = [
        [f"[{name}](#{name}) {claim.claim}", f"**{claim.verdict}**", words.seeds(claim), outcome(claim)]
        for claim, name in zip(claims, anchors(claims), strict=True)
    ]
    tally = Counter(claim.verdict for claim in claims)
    told = ", ".join(f"{tally[verdict]} {verdict}" for verdict in ("supported", "contradicted", "no power", "not run") if tally[verdict])
    return Section(
        "verdicts",
        "What FAPO claims, and what came out",
        [
            f"{len(claims)} claims of arXiv 2510.22543 or of this project: {told}. n = {words.ran(rows)}, {seeds} seeds, {version}. "
            "[How it was made](#made).",
            Table(["claim", "verdict", "n", "primary outcomes"], table),
            "Primary outcomes are means over paired seeds [95 % interval]. Supported: every interval lies on the claim's side, Holm's p "
            "of the paired t test is below .05. Contradicted: one lies on the other side. No power: neither, which is no evidence for "
            f"equality. {words.counting(claims)}.",
        ],
    )


def same(values: Iterable[Any]) -> str:
    """The values that occur, each once, in order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "", {})))


def settings(row: Row) -> str:
    given = row.get("settings")
    pairs = (
        [f"--{name} {value}" for name, value in given.items()]
        if isinstance(given, dict)
        else [given]
        if isinstance(given, str)
        else list(given or [])
    )
    return " ".join(map(str, pairs)).replace("`", "'")


def of_arms(rows: Sequence[Row]) -> tuple[Table, list[str]]:
    """Every arm with its runs and settings; and what of the plan is missing: seeds that other arms of the start have."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["start"], row["arm"]), []).append(row)
    lines, missing = [], []
    for (start, arm), runs in groups.items():
        has = {row["seed"] for row in runs}
        lines.append([f"`{start}/{arm}`", str(len(runs)), f"`{settings(runs[0])}`" if settings(runs[0]) else "–"])
        absent = sorted({row["seed"] for row in rows if row["start"] == start} - has)
        if absent:
            missing.append(f"`{start}/{arm}`: no run of seed {', '.join(map(str, absent))} (n = {len(has)})")
    return Table(["start/arm", "n", "its own settings"], lines), missing


def signs(rows: Sequence[Row]) -> list[Block]:
    """The sign identity over every group of every run."""
    counted: dict[str, Counter] = {}
    for row in rows:
        if row.get("sign"):
            counted.setdefault(row["start"], Counter(runs=0)).update(
                {"runs": 1, **{name: int(row["sign"].get(name, 0)) for name in ("groups", "exceptions", "ties")}}
            )
    if not counted:
        return ["No run has groups with a flawed rollout: n = 0."]
    total = sum(counted.values(), Counter())
    kinds = ("groups", "exceptions", "ties", "runs")
    lines = [[name, *(f"{count[kind]:,}" for kind in kinds)] for name, count in (*counted.items(), ("all", total))]
    said = f"**{total['exceptions']:,} exceptions** in n = {total['groups']:,} groups of {total['runs']:,} runs"
    return [
        f"A flawed rollout's advantage is negative exactly where ρ > 2/λ − 1: {said}; {total['ties']:,} ties, where both sides are equal "
        "and the advantage is 0.",
        Table(["start", "n groups", "exceptions", "ties", "n runs"], lines),
    ]


def made(claims: Sequence[Claim], rows: Sequence[Row]) -> Section:
    stamps: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        stamp = dict(row.get("stamp") or {})
        date = str(stamp.pop("date", ""))[:10]
        commit, device = stamp.pop("commit", "unknown"), stamp.pop("device", "unknown")
        versions = ", ".join(
            f"{name} {value}" for name, value in stamp.items() if isinstance(value, str | int | float) and not isinstance(value, bool)
        )
        stamps.setdefault((str(commit), str(device), versions), []).append(date)
    stamped = [
        [commit, device, versions, same([min(dates), max(dates)]).replace(", ", " to "), str(len(dates))]
        for (commit, device, versions), dates in stamps.items()
    ]
    table, missing = of_arms(rows)
    undone = [f"{name}: {claim.claim} (n = 0)" for claim, name in zip(claims, anchors(claims), strict=True) if claim.verdict == "not run"]
    n = len(rows)
    return Section(
        "made",
        "How it was made",
        [
            f"The protocol, fixed before the runs: [protocol.md]({PROTOCOL}). All arms of a seed begin with the same policy and see "
            "the same prompts and sampling seeds, so differences are paired by seed. Intervals are 95 % t intervals over seeds, p the "
            "exact sign-flip test (two-sided), Holm over the primary contrasts of the whole report, from the paired t test.",
            "### The sign identity",
            *signs(rows),
            "### Runs",
            Table(["commit", "machine", "versions", "dates", "n"], stamped),
            "### What was not run",
            Bullets([*undone, *missing] or [f"Every claim has runs, and all arms of a start have the same seeds (n = {n} runs)."]),
            "### Every number's command",
            Table(
                ["what", "command", "n"],
                [
                    ["every run, and this page after them", "`make science`", f"{n}"],
                    ["this page, from the rows in `bench/results/science.jsonl`", "`python bench/science/report.py`", f"{n}"],
                    ["the table in README.md", "`python bench/science/readme_table.py`", f"{n}"],
                ],
            ),
            f"The rows: n = {n}, SHA-256 {digest(rows)}. A run is named by its start, arm and seed; the settings below are what its arm "
            "has of its own.",
            table,
        ],
    )


def write(rows: Sequence[Row], claims: Sequence[Claim], folder: Path) -> list[Path]:
    """index.html and report.md into `folder`; returns them."""
    names = anchors(claims)
    told = [contrast for claim in claims for contrast in claim.contrasts]
    drawn = {name: [figure for draw in draws if (figure := draw(rows, told))] for name, draws in FIGURES.items()}
    # Of several claims with one id the first has the figures; what belongs to none is not lost.
    sections = [head(claims, rows)]
    sections += [section(claim, name, drawn.pop(name, ())) for claim, name in zip(claims, names, strict=True)]
    if rest := [figure for figures in drawn.values() for figure in figures]:
        sections.append(Section("more", "Plots that belong to no claim above", [f"n = {len(rows)} runs.", *rest]))
    sections.append(made(claims, rows))
    folder.mkdir(parents=True, exist_ok=True)
    page, text = folder / "index.html", folder / "report.md"
    page.write_text(as_html("soundrl: what FAPO claims, and what came out", sections))
    text.write_text(as_md(sections))
    return [page, text]


def main(arguments: Arguments) -> None:
    from analysis import claims

    rows = read(arguments.rows, arguments.quick)
    found = claims(rows)
    for claim in found:
        print(f"{claim.id:4} {claim.verdict:13} n = {words.seeds(claim):5} {claim.claim}")
    for path in write(rows, found, arguments.out):
        print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

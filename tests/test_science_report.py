"""The report of the science: from synthetic rows of every experiment to a page in which no claim stands without its n."""

import doctest
import json
import math
import random
import re
import statistics
import sys
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench" / "science"))
import canvas
import figures
import page
import panels
import readme_table
import report
import words
from claim import Arm, Claim, Contrast

KINDS = ("student", "repair", "operand", "swap", "extra")
STAMP = {"device": "a CPU, 1 thread", "torch": "2.13.0", "python": "3.11.2", "commit": "abc1234", "date": "2026-11-30T01:00:00+00:00"}
STEPS = 24


def policy_row(start: str, arm: str, seed: int, steps: int = STEPS) -> dict:
    """A run as it might be: flawed falls with λ, a lenient judge lets skips grow, a noisy one does little until it is very noisy."""
    rng = random.Random(f"{start} {arm} {seed}")
    from_seed = random.Random(f"{start} {seed}").gauss(0, 0.03)
    lam = float(Fraction(arm[4:].partition("+")[0])) if arm.startswith("lam=") else 1.0
    error = (
        float(arm.partition("=")[2])
        if arm.startswith(("false_alarms", "misses"))
        else 0.5
        if arm.startswith(("blind", "judge", "harsh"))
        else 0.0
    )
    first = {"default": (0.6, 0.4), "scarce": (0.2, 0.9), "large": (0.5, 0.45)}[start]
    hacked = ("lenient" in arm) * 0.2 + ("step-ratio" in arm) * 0.15
    last = 0.9 + from_seed / 3, max(0.05, 0.33 - 0.2 * lam * (1 - error) + hacked) * (2 if start == "scarce" else 1)
    series = {name: [] for name in ("right", "sound", "wrong", "flawed", "past", "rho", "lines", "skip", "guess", "tokens")}
    for step in range(steps):
        way = 1 - math.exp(-3.2 * step / steps)
        right = min(0.99, max(0.01, first[0] + (last[0] - first[0]) * way + from_seed + rng.gauss(0, 0.02)))
        share = min(0.98, max(0.02, first[1] + (last[1] - first[1]) * way + rng.gauss(0, 0.02)))
        sound, flawed, wrong = right * (1 - share), right * share, 1 - right
        rho = None if seed == 3 and step == steps - 1 else sound / wrong
        past = 0.0 if lam == 0 else min(1.0, max(0.0, 0.5 + 0.4 * math.log2((rho or 9) / max(2 / lam - 1, 0.05))))
        for name, value in zip(
            series, (right, sound, wrong, flawed, past, rho, 4 - 2 * hacked * way, hacked * way, hacked * way / 2, 60), strict=True
        ):
            series[name].append(value)

    def measures(at: int) -> dict:
        right, sound = series["right"][at], series["sound"][at]
        told = {"right": right, "sound": sound, "flawed": 1 - sound / right, "tokens": 60.0, "lines": series["lines"][at]}
        return told | {"skip": series["skip"][at], "guess": series["guess"][at], "p2/right": right / 2, "p2/sound": sound / 2}

    sign = {"groups": 40 * steps, "exceptions": 0, "ties": 3}
    return {"before": measures(0), "after": measures(-1), "series": series, "sign": sign}


def row(start: str, arm: str, seed: int, steps: int = STEPS) -> dict:
    rng = random.Random(f"{start} {arm} {seed}")
    base = {
        "run": f"{start}/{arm}/{seed}",
        "start": start,
        "arm": arm,
        "seed": seed,
        "quick": False,
        "settings": {"environment": f"arith?{arm}"},
    }
    if start == "critic":
        gain = {"warm": 0.0, "outcome": 0.1, "process": 0.35}[arm]
        told = {f"exact/{kind}": 0.3 + gain - 0.04 * index + rng.gauss(0, 0.05) for index, kind in enumerate(KINDS)}
        told |= {"precision": 0.8 + gain / 3, "recall": 0.75 + gain / 3, "f1": 0.78 + gain / 3, "unseen/f1": 0.6 + gain / 2}
        return base | {"before": told, "after": told, "series": {}, "sign": None, "stamp": STAMP}
    if start == "timing":
        kind, _, ratio = arm.partition("/")
        x = 1.05 + rng.gauss(0, 0.01) + (float(ratio) if kind == "serial" else max(0, float(ratio) - 0.9))
        after = {"seconds": 2.0 * x, "x_known": x, "hidden": 0.93 if kind == "overlap" else 0.1}
        return base | {"before": {}, "after": after, "series": {}, "sign": None, "stamp": STAMP}
    return base | policy_row(start, arm, seed, steps) | {"stamp": STAMP}


PLAN = {
    "default": [
        *figures.LAMBDAS,
        "step-ratio",
        "lam=1+lenient",
        "step-ratio+lenient",
        "false_alarms=0.4",
        "false_alarms=0.8",
        "misses=0.5",
        "misses=0.9",
    ]
    + ["blind=false", "blind=skip", "blind=guess", "harsh", "judge=warm", "judge=outcome", "judge=process"],
    "scarce": [*figures.LAMBDAS, "leave"],
    "large": ["lam=0", "lam=1"],
    "critic": ["warm", "outcome", "process"],
    "timing": [f"{kind}/{ratio}" for ratio in ("0.25", "0.5", "1", "2") for kind in ("overlap", "serial")],
}


def all_rows(seeds: int = 8, steps: int = STEPS) -> list[dict]:
    return [row(start, arm, seed, steps) for start, arms in PLAN.items() for arm in arms for seed in range(seeds)]


SENTENCES = {
    "E1": ("default", "λ = 1 is right without tuning", "Tab. 5", "sound", "lam=1", "lam=0"),
    "E1b": ("large", "The same holds at a second scale", "", "sound", "lam=1", "lam=0"),
    "E2a": ("scarce", "Flawed positives help early and hurt late", "§3.2", "sound", "lam=1", "lam=2"),
    "E3a": ("default", "The shift comes by itself as ρ rises", "Eq. 9", "right", "lam=1", "lam=0"),
    "E4a": ("default", "A step-ratio reward is hacked, FAPO is not", "Fig. 6", "sound", "step-ratio+lenient", "lam=1+lenient"),
    "E5a": ("default", "FAPO needs a good judge", "§5", "sound", "false_alarms=0.8", "lam=0"),
    "E5b": ("default", "What a judge never sees stays", "ours", "sound", "blind=skip", "lam=1"),
    "E6a": ("critic", "R_process teaches where the flaw is", "Fig. 4", "exact/student", "process", "outcome"),
    "E7": ("default", "A better judge makes a better policy", "Fig. 5", "sound", "judge=process", "judge=warm"),
    "E8": ("timing", "Judging costs less than a fifth of a step", "§4.5", "x_known", "overlap/0.5", "serial/0.5"),
}


def claims(rows: list[dict]) -> list[Claim]:
    """A stand-in for the analysis: one primary contrast a claim, its two arms, and of E5 a break-even."""
    found = []
    for name, (start, sentence, source, measure, ours, theirs) in SENTENCES.items():
        both = [figures.measured(rows, start, arm, measure) for arm in (ours, theirs)]
        seeds = sorted(set(both[0]) & set(both[1]))
        gains = [both[0][seed] - both[1][seed] for seed in seeds]
        contrasts = []
        if gains:
            mean, low, high = panels.spread(gains)
            p = 2 / 2 ** len(gains) if len(gains) > 1 else 1.0
            contrasts = [
                Contrast(
                    what=f"{measure}: {ours} − {theirs}", values=gains, mean=mean, low=low, high=high, p=p, primary=True, holm=min(1, 9 * p)
                )
            ]
            points = [100 * gain for gain in gains]
            contrasts.append(Contrast(what="the same", values=points, mean=100 * mean, low=100 * low, high=100 * high, p=p, unit="points"))
        if name == "E5a" and gains:
            contrasts.append(Contrast(what="break-even false alarms", values=[0.7, 0.8], mean=0.75, low=0.6, high=0.9, p=1.0))
        table = []
        for arm in (ours, theirs):
            told = {m: panels.spread(list(v.values())) for m in ("sound", "right", measure) if (v := figures.measured(rows, start, arm, m))}
            if told:
                table.append(Arm(label=words.arm(arm), figures=told, n=len(figures.runs(rows, start, arm))))
        verdict = (
            "not run"
            if not gains
            else "no power"
            if len(gains) < 3
            else "supported"
            if low > 0
            else "contradicted"
            if high < 0
            else "no power"
        )
        because = (
            f"{measure} {words.interval(mean, low, high, signed=True)} (n = {len(gains)} seeds)." if gains else "No pair of runs (n = 0)."
        )
        found.append(
            Claim(
                id=name,
                claim=sentence,
                source=source,
                verdict=verdict,
                because=because,
                contrasts=contrasts,
                arms=table,
                notes=["One world, of arithmetic."],
            )
        )
    return found


class Reader(HTMLParser):
    """Sections (id → text), tables (of a section; rows of cell texts), captions, and whatever a page could load or lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections, self.tables, self.captions, self.tags, self.links, self.ids = {}, [], [], [], [], []
        self.cell = self.caption = None
        self.section = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        told = dict(attrs)
        self.tags.append(tag)
        self.ids += [told["id"]] if "id" in told else []
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag == "section":
            self.section = told["id"]
            self.sections[self.section] = ""
        elif tag == "table":
            self.tables.append((self.section, []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag == "figcaption":
            self.caption = ""

    def handle_endtag(self, tag) -> None:
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append(self.cell)
            self.cell = None
        elif tag == "figcaption":
            self.captions.append(self.caption)
            self.caption = None

    def handle_data(self, data) -> None:
        if self.section:
            self.sections[self.section] += data
        if self.cell is not None:
            self.cell += data
        if self.caption is not None:
            self.caption += data


def without_n(read: Reader) -> list[str]:
    """Sections, captions and tables (each row) in which no n is said."""
    said = re.compile(r"\bn\s=\s\d")
    faults = [f"section {name}" for name, text in read.sections.items() if not said.search(text)]
    faults += [f"caption {text!r}" for text in read.captions if not said.search(text)]
    for section, (head, *rows) in read.tables:
        columns = [index for index, cell in enumerate(head) if re.fullmatch(r"n( \w+)?", cell)]
        faults += [f"table of {section}: {row}" for row in [head, *rows] if not columns]
        faults += [f"table of {section}: {row}" for row in rows for index in columns if not re.fullmatch(r"[\d,]+(–\d+)?", row[index])]
    return faults


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rows = all_rows()
    found = claims(rows)
    html, md = report.write(rows, found, tmp_path_factory.mktemp("report"))
    return rows, found, html.read_text(), md.read_text()


def test_no_claim_stands_without_its_n(written):
    _, found, html, _ = written
    read = Reader(html)
    assert without_n(read) == []
    assert (
        set(read.sections) == {"verdicts", "made", *SENTENCES}
        and len(read.tables) >= 2 * len(found) + 4
        and len(read.captions) >= 2 * len(found)
    )
    verdicts = read.tables[0][1]
    assert [row[1] for row in verdicts[1:]] == [claim.verdict for claim in found] and {row[2] for row in verdicts[1:]} == {"8"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (r'<th scope="col">n</th>', '<th scope="col">seeds</th>', "table of E1"),
        (r"n\u00a0=\u00a0\d+ seeds\.</figcaption>", "</figcaption>", "caption"),
        (r"n\u00a0=\u00a0", "", "section E3"),
    ],
)
def test_a_page_without_an_n_is_found(written, old, new, said):
    """The inverse of the test above."""
    assert any(fault.startswith(said) for fault in without_n(Reader(re.sub(old, new, written[2]))))


def test_every_number_is_in_the_text(written):
    """Against statistics' own mean, and the numbers of one seed."""
    rows, found, html, md = written
    at_one = [row["after"]["sound"] for row in rows if row["start"] == "default" and row["arm"] == "lam=1"]
    mean = statistics.fmean(at_one)
    half = 2.365 * statistics.stdev(at_one) / 8**0.5
    told = f"{words.number(mean)} [{words.number(mean - half)}, {words.number(mean + half)}]"
    assert f"| 1 | {told} | {' '.join(map(words.number, at_one))} | 8 |" in md  # of the plot of E1
    for contrast in (contrast for claim in found for contrast in claim.contrasts):
        shown = words.interval(contrast.mean, contrast.low, contrast.high, signed=True, unit=contrast.unit)
        assert shown in html and shown in md
    assert "Upright: the break-even rate" in html and md.count("### The numbers of the plots") == sum(map(len, figures.FIGURES.values()))


def test_the_page_needs_nothing_else_and_its_names_are_its_own(written):
    html = written[2]
    read = Reader(html)
    assert {"script", "img", "link", "iframe", "object"} & set(read.tags) == set() and "@import" not in html
    assert {link for link in read.links if not link.startswith("#")} == {report.PROTOCOL}
    assert {(ROOT / folder / report.PROTOCOL).resolve() for folder in ("bench/results/science", "runs/science/report")} == {
        ROOT / "bench/science/protocol.md"
    }
    assert len(read.ids) == len(set(read.ids)) and {link[1:] for link in read.links if link[0] == "#"} <= set(read.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(read.ids) and "url(" not in re.sub(r"url\(#", "", html)
    assert len(html) < 1_000_000


def test_letters_are_of_eight_points_and_panels_of_a_phones_width(written):
    html = written[2]
    sizes = {float(size) for size in re.findall(r"font: ?(?:\w+ )?([\d.]+)px", html)}
    assert sizes and min(sizes) >= 8
    assert (
        set(re.findall(r'<svg [^>]*width="([\d.]+)pt"', html)) == {f"{72 * 3.4:.1f}"}
        and html.count("<svg ") == html.count('<div class="panel">') > 40
    )


def test_the_same_rows_give_the_same_bytes(tmp_path):
    """In whatever order the runs ended; no date of the day, no name by chance."""
    rows = [made for made in all_rows(seeds=2, steps=4) if made["start"] == "timing"]
    random.Random(1).shuffle(rows)
    pages = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in order))
        read = report.read(tmp_path / f"{name}.jsonl")
        pages.append([path.read_bytes() for path in report.write(read, [c for c in claims(read) if c.id == "E8"], tmp_path / name)])
    assert pages[0] == pages[1] and report.digest(rows) == report.digest(rows[::-1]) != report.digest(rows[1:])


@pytest.mark.parametrize("spoil", ["nothing", "one seed", "an arm", "holes"])
def test_what_is_partly_run_is_shown_as_far_as_it_goes(tmp_path, spoil):
    rows = {
        "nothing": [],
        "one seed": [row(start, arm, 0, 3) for start in ("default", "critic") for arm in PLAN[start][:2]],
        "an arm": [row("scarce", "lam=1", seed, 3) for seed in range(3)] + [row("timing", "serial/2", 0)],
        "holes": [row("default", arm, seed, 2 + seed) for arm in ("lam=1", "lam=0") for seed in range(2)]
        + [row("default", "step-ratio", 1, 2)],
    }[spoil]
    if spoil == "holes":
        del rows[0]["series"], rows[1]["after"], rows[2]["before"], rows[2]["sign"], rows[3]["stamp"], rows[3]["settings"]
        rows[1]["series"]["rho"] = [None] * 3
        rows[3]["after"] |= {"sound": None, "right": math.nan, "lines": "four"}
    found = claims(rows)
    html = report.write(rows, found, tmp_path)[0].read_text()
    read = Reader(html)
    assert without_n(read) == [] and "more" not in read.sections
    assert [r[1] for r in read.tables[0][1][1:]] == [claim.verdict for claim in found] and "not run" in {claim.verdict for claim in found}
    undone = read.sections["made"]
    assert all(f"{claim.id}: {claim.claim} (n\u00a0=\u00a00)" in undone for claim in found if claim.verdict == "not run")
    assert ("default/step-ratio: no run of seed 0 (n\u00a0=\u00a01)" in undone) == (spoil == "holes")


def test_an_exception_to_the_sign_is_counted_and_names_cannot_break_out(tmp_path):
    rows = [row("default", "lam=1", seed, 3) for seed in range(2)]
    rows[1]["sign"]["exceptions"] = 2
    rows[0]["arm"], rows[0]["settings"] = "<b>`x|y", {"a": "<script>alert(1)</script>`|"}
    hostile = Claim(id="E9", claim="a < b | </section>", source="<i>", verdict="no power", because="<script>", notes=["&amp; <p>"])
    html, md = (path.read_text() for path in report.write(rows, [hostile, hostile], tmp_path))
    assert "2 exceptions</b> in n\u00a0=\u00a0240 groups of 2 runs" in html
    read = Reader(html)
    assert not {"script", "i"} & set(read.tags) and [*read.sections] == ["verdicts", "E9", "E9-2", "more", "made"]
    assert "share of groups" in read.sections["more"]  # E1's and E3's figures, for which no claim asks
    assert "a < b | </section>" in read.sections["E9"] and "<script>" in read.sections["E9"]
    assert all(line.count("|") - line.count(r"\|") == 4 for line in md.splitlines() if line.startswith("| `default/"))


def test_series_by_hand():
    rows: list[dict] = [
        {"start": "scarce", "arm": "leave", "seed": seed, "series": {"right": [0.1 * seed] * 15 + [9.0]}} for seed in (2, 1)
    ]
    assert figures.early(rows, "scarce", "leave") == pytest.approx({1: 0.1, 2: 0.2})  # steps 1 … 15, not the sixteenth
    panel = panels.curves("", panels.Axis(""), {"a": {1: [0.0, 0.5, 1.0], 2: [1.0, None, 2.0]}})
    assert panel and list(panel.head) == ["arm", "step 1", "step 2", "step 3", "n"]
    assert panel.rows == [["a", ".500 [−5.853, 6.853]", ".500 [–, –]", "1.500 [−4.853, 7.853]", "1–2"]]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"run": 1'], "rows.jsonl:1: not JSON"),
        (["", "[]"], "rows.jsonl:2: no object"),
        (['{"run": "a", "start": "default", "arm": "x", "quick": false}'], "rows.jsonl:1: no seed"),
        (['{"run": "a", "start": "default", "arm": "x", "seed": 0, "quick": false}'] * 2, "rows.jsonl:2: run a stands in line 1 already"),
    ],
)
def test_a_bad_row_is_named_with_its_place(tmp_path, lines, said):
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit, match=re.escape(said)):
        report.read(tmp_path / "rows.jsonl")


def test_the_full_version_is_reported_where_there_is_one(tmp_path):
    short, full = [{"run": "a", "start": "default", "arm": "lam=1", "seed": 0, "quick": quick} for quick in (True, False)]
    for rows, quick, expected in (([short, full], False, full), ([short, full], True, short), ([short], False, short)):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert report.read(tmp_path / "rows.jsonl", quick) == [expected]
    with pytest.raises(SystemExit, match=r"no .*none.jsonl; `make science` writes it"):
        report.read(tmp_path / "none.jsonl")


def test_the_readmes_table_is_rewritten_and_checked(tmp_path, monkeypatch, capsys):
    rows = [row("large", arm, seed, 3) for arm in ("lam=0", "lam=1") for seed in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setitem(sys.modules, "analysis", SimpleNamespace(claims=claims))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- science -->\n<!-- /science -->\nafter\n")
    given = readme_table.Arguments(rows=tmp_path / "rows.jsonl", pages=(readme,))
    check = replace(given, check=True)
    with pytest.raises(SystemExit, match=r"not what the rows say: README\.md"):
        readme_table.main(check)
    assert readme.read_text().count("|") == 0  # --check changes nothing
    readme_table.main(given)
    readme_table.main(check)
    contrast = claims(rows)[1].contrasts[0]
    shown = words.interval(contrast.mean, contrast.low, contrast.high, signed=True)
    lines = readme.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- science -->"] and lines[-2:] == ["<!-- /science -->", "after"]
    assert f"| E1b. The same holds at a second scale | supported | sound: lam=1 − lam=0 {shown}, Holm p = .281 | 6 |" in lines
    assert "| E1. λ = 1 is right without tuning | not run | – | 0 |" in lines
    readme.write_text(readme.read_text().replace(shown, "+.999"))
    with pytest.raises(SystemExit):
        readme_table.main(check)
    readme.write_text("no marks")
    with pytest.raises(SystemExit, match=r"README\.md needs <!-- science -->"):
        readme_table.main(check)
    assert "rewritten: README.md" in capsys.readouterr().out


@pytest.mark.skipif("<!-- science -->" not in (ROOT / "README.md").read_text(), reason="no science table in README.md")
def test_the_committed_table_and_report_are_what_the_rows_say():
    readme_table.main(readme_table.Arguments(check=True))
    assert report.digest(report.read(report.ROWS)) in (report.ROWS.parent / "science" / "report.md").read_text()


@pytest.mark.parametrize("module", [words, canvas, panels, figures, page, readme_table], ids=lambda module: module.__name__)
def test_examples_of_the_docstrings(module):
    assert doctest.testmod(module) == (0, sum(len(test.examples) for test in doctest.DocTestFinder().find(module) if test.examples))


if __name__ == "__main__":
    rows = all_rows(steps=60)
    print(report.write(rows, claims(rows), report.Path(sys.argv[1])))

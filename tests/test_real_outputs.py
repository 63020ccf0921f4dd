"""What the rules cost on answers that models really gave: 432 outputs of five families, each verdict against its label."""

import json
from collections import Counter
from pathlib import Path

from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.box import final_box
from soundrl.fapo.verify.compare import compare
from soundrl.fapo.verify.rule import list_length, rule

ROWS = [json.loads(line) for line in (Path(__file__).parent / "data" / "real_outputs.jsonl").read_text(encoding="utf-8").splitlines()]


def is_accepted(response, gold):
    """The verifier's verdict without its processes, so that no wall clock has a say."""
    box = final_box(response, parts=list_length(gold))
    if box is None or box.hedged:
        return False
    ruling = rule(gold, box.text)
    return ruling.outcome is Outcome.CORRECT if ruling.outcome else compare(ruling.gold, ruling.answer) == "equal"


def test_every_verdict():
    verdicts = {row["id"]: is_accepted(row["response"], row["gold"]) for row in ROWS}
    assert {row["id"] for row in ROWS if verdicts[row["id"]] and not row["right"]} == set()
    assert {row["id"] for row in ROWS if not verdicts[row["id"]] and row["right"]} == set()
    table = Counter((row["family"], row["right"], verdicts[row["id"]]) for row in ROWS)
    lines = (f"{family:14} right {right!s:5} accepted {said!s:5} {count:4}" for (family, right, said), count in sorted(table.items()))
    print(*lines, sep="\n")


def test_the_set_holds_what_it_says():
    assert len(ROWS) >= 400
    assert len({row["family"] for row in ROWS}) >= 4
    assert min(Counter(row["right"] for row in ROWS).values()) >= 150  # both kinds of fault could show

"""What an interrupted step keeps: rollouts and verdicts, up to what a kill has cut off, of the same weights alone."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from soundrl.engine.files import underway as module
from soundrl.engine.files.underway import RememberingJudge, Underway, next_start, read_verdicts, take_over
from soundrl.fapo.records import Prompt, Rollout, Verdict


class Rank:
    def __init__(self, rank: int) -> None:
        self.rank = rank


PROMPTS = {f"p{i}": (Prompt(id=f"p{i}", text=f"{i}?", answer="1"), np.arange(i + 1, dtype=np.int32)) for i in range(4)}


def rollout(prompt: int, sample: int, version: int = 7) -> Rollout:
    tokens = np.arange(prompt + sample + 1)
    return Rollout(
        prompt_id=f"p{prompt}",
        sample=sample,
        prompt_tokens=PROMPTS[f"p{prompt}"][1],
        tokens=tokens,
        logprobs=-np.sqrt(tokens + 0.1 * sample),
        text=f"{prompt} \x1b and {sample}",
        finish_reason="stop",
        policy_version=version,
    )


def begun(folder: Path, rank: int, start: int, version: int = 7) -> tuple[Underway, dict]:
    those = Underway(folder, Rank(rank), start)  # type: ignore[arg-type]
    return those, those.begin(3, version, PROMPTS)


def same(a: Rollout, b: Rollout) -> bool:
    pairs = [(getattr(a, n), getattr(b, n)) for n in ("tokens", "logprobs", "prompt_tokens")]
    arrays = all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)
    return arrays and all(getattr(a, n) == getattr(b, n) for n in ("prompt_id", "sample", "text", "finish_reason", "policy_version"))


def test_any_rank_of_a_later_start_finds_what_was_sampled_and_judged(tmp_path):
    for rank in (0, 1):
        those, known = begun(tmp_path, rank, 0)
        assert known == {}
        for sample in range(20):
            those.add(rollout(rank, sample))
        those.judged(rollout(rank, 0), Verdict.flawed(2, "carry"))
        those.judged(rollout(rank, 1), Verdict.unknown("unreachable"))
        those.judged(rollout(rank, 2), Verdict.unknown("no_box"))
    # Nothing is flushed at the end: these were killed. Whole batches of 16 are there.
    later, known = begun(tmp_path, 0, 1)
    assert known.keys() == {(f"p{rank}", sample) for rank in (0, 1) for sample in range(16)}
    assert all(same(known[f"p{rank}", sample], rollout(rank, sample)) for rank in (0, 1) for sample in range(16))
    flawed, no_box = Verdict.flawed(2, "carry"), Verdict.unknown("no_box")
    assert later.told == {("p0", 0): flawed, ("p1", 0): flawed, ("p0", 2): no_box, ("p1", 2): no_box}
    later.flush()
    later.add(rollout(2, 5))
    later.flush()
    assert begun(tmp_path, 1, 1)[1].keys() == known.keys()  # its own start's files are not read
    assert begun(tmp_path, 1, 2)[1].keys() == known.keys() | {("p2", 5)}
    later.end()
    assert not (tmp_path / "step-000003").exists()


def test_what_other_weights_have_sampled_is_counted_and_sampled_again(tmp_path, caplog):
    those, _ = begun(tmp_path, 0, 0)
    for sample in range(3):
        those.add(rollout(1, sample, version=6 + (sample > 0)))
    those.flush()
    assert begun(tmp_path, 0, 1)[1].keys() == {("p1", 1), ("p1", 2)}
    assert "1 rollouts in" in caplog.text and "are of other weights, and sampled again" in caplog.text


@pytest.mark.parametrize("bytes_left", [0, 10, 500, -1, -100])
def test_a_file_that_was_cut_reads_up_to_its_last_whole_batch(bytes_left, tmp_path):
    those, _ = begun(tmp_path, 0, 0)
    for sample in range(32):
        those.add(rollout(1, sample))
    (file,) = (tmp_path / "step-000003").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: bytes_left or 0])
    known = begun(tmp_path, 0, 1)[1]
    assert len(known) == (16 if bytes_left < 0 else 0) and all(same(r, rollout(1, sample)) for (_, sample), r in known.items())


def test_a_line_that_was_cut_is_asked_again(tmp_path):
    those, _ = begun(tmp_path, 0, 0)
    for sample in range(3):
        those.judged(rollout(0, sample), Verdict.sound())
    (file,) = (tmp_path / "step-000003").iterdir()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + '{"prompt_id": 1}\n' + "nonsense\n" + lines[2][:-1])
    assert begun(tmp_path, 0, 1)[0].told == {("p0", 0): Verdict.sound()}


class Counting:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        self.asked.append(rollout.sample)
        verdict: Future[Verdict] = Future()
        verdict.set_result(Verdict.unknown("closed") if rollout.sample == 3 else Verdict.flawed(rollout.sample or None))
        return verdict


def test_a_judge_is_asked_once(tmp_path):
    those, _ = begun(tmp_path, 0, 0)
    first = RememberingJudge(judge := Counting(), those)  # type: ignore[arg-type]
    said = [first.submit(PROMPTS["p0"][0], rollout(0, sample)).result() for sample in range(4)]
    later, _ = begun(tmp_path, 0, 1)
    again = RememberingJudge(judge, later)  # type: ignore[arg-type]
    assert [again.submit(PROMPTS["p0"][0], rollout(0, sample)).result() for sample in range(5)] == [*said, Verdict.flawed(4)]
    assert judge.asked == [0, 1, 2, 3, 3, 4]  # who only could not be asked is asked again
    later.end()
    again.submit(PROMPTS["p0"][0], rollout(0, 1))  # of an evaluation
    assert not (tmp_path / "step-000003").exists()


def test_steps_behind_the_checkpoint_become_steps_under_way(tmp_path):
    rollouts, underway = tmp_path / "rollouts", tmp_path / "underway"
    assert [next_start(underway) for _ in range(3)] == [1, 2, 3]
    for step in (2, 3):
        (rollouts / f"step-{step:06d}").mkdir(parents=True)
        for name in ("rank-0.arrows", "rank-1.arrows.part", "rank-0.eval-x.arrows"):
            (rollouts / f"step-{step:06d}" / name).write_text("x")
    take_over(rollouts, underway, 2, 3)
    assert [p.name for p in rollouts.iterdir()] == ["step-000002"]
    assert sorted(p.name for p in (underway / "step-000003").iterdir()) == [
        "2-again-rank-0.arrows",
        "2-again-rank-0.eval-x.arrows",
        "2-again-rank-1.arrows.part",
    ]
    assert all(module.started(file) == 2 for file in (underway / "step-000003").iterdir())
    assert json.loads((underway / "starts").read_text()) == 3


def test_a_verdict_that_an_earlier_version_has_heard_is_kept_without_its_times(tmp_path):
    line = vars(Verdict("flawed", 1, critique="No.", tokens=9, seconds=1.5, asked=3.0, answered=4.5)) | {"prompt_id": "p", "sample": 0}
    older = {name: value for name, value in line.items() if name not in ("asked", "answered")}
    file = tmp_path / "1-rank-0.verdicts.jsonl"
    file.write_text(json.dumps(line) + "\n" + json.dumps(older) + "\n")
    now, before = read_verdicts(file)
    assert now == line and before == line | {"asked": 0.0, "answered": 0.0}

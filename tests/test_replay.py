"""A saved step is computed once more, from whatever settings and ranks it was written; what differs is named; another λ flips what the
algebra says. Files are written by the engine's own writer; runs that were trained are replayed in test_train.py, with their weights."""

import dataclasses
import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from fake_judge import MODEL, Server, replies, said
from test_run_files import save

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import build_environment
from soundrl.engine.files.run_reader import FORMAT
from soundrl.engine.judging.judges import BuiltJudge
from soundrl.engine.recipes import arith
from soundrl.engine.task import build_task
from soundrl.engine.tools import at_weights, replay
from soundrl.engine.tools.other_scoring import Change, scored_otherwise
from soundrl.engine.tools.recomputed import Recomputed
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.prompt_stream import PromptStream, distinct
from soundrl.fapo.flips import Mix, flips, identity, sign
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Turn, Verdict

STEP, SIZE, SAMPLES = 3, 6, 5
SAID = {"s": Verdict.sound(), "f": Verdict.flawed(1, "skip"), "u": Verdict.unknown("no_box")}
OUTCOMES = {"w": Outcome.WRONG, "n": Outcome.NO_ANSWER, "x": Outcome.UNKNOWN}


def config_of(**changed: Any) -> Config:
    """The embedded world's with small steps; `changed` by `group__name`."""
    config, groups = arith(), dict[str, Any]()
    small = {
        "model__path": "starts/policy",
        "rollout__prompts": SIZE,
        "rollout__samples": SAMPLES,
        "optim__minibatch_prompts": 3,
        "optim__microbatch_tokens": 160,
    }
    for name, value in (small | {"warm_start__steps": 0} | changed).items():
        group, _, setting = name.partition("__")
        groups[group] = replace(groups.get(group, getattr(config, group)), **{setting: value})
    return replace(config, **groups)


def group_of(prompt: Prompt, letters: str, scores: bool = False, turns: bool = False) -> Group:
    rng, rollouts = Random(prompt.id), []
    for i in range(len(letters)):
        length = rng.randint(1, 59)
        mask = np.array([rng.random() < 0.7 for _ in range(length)], np.uint8) if turns else np.ones(length, np.uint8)
        said = (Turn(text="1+1", own=True), Turn(text="2", own=False, tool="calculator")) if turns else ()
        text = rf"\boxed{{{prompt.answer if i % 2 == 0 else 'x'}}}"
        same = {"prompt_tokens": range(len(prompt.text)), "tokens": range(length), "logprobs": -np.ones(length), "mask": mask}
        rollouts.append(Rollout(prompt_id=prompt.id, sample=i, text=text, finish_reason="stop", policy_version=1, turns=said, **same))  # type: ignore
    return Group(
        prompt=prompt,
        rollouts=rollouts,
        outcomes=[OUTCOMES.get(letter, Outcome.CORRECT) for letter in letters],
        verdicts=[SAID.get(letter) for letter in letters],
        scores=[round(rng.uniform(-2, 2), 3) if scores else None for _ in letters],
    )


def written(folder: Path, config: Config, ranks: int = 1, refill: bool = False, without: str = "", **how: bool) -> list[str]:
    """The folder of a run after `STEP` steps, of which the last one has its rollouts: groups of random outcomes and verdicts, dealt over
    the ranks. With `refill` one group in two trains nothing, and seven more prompts were sampled in each step. Returns the prompts that
    were trained, in the global order."""
    environment, rng = build_environment(config.data.environment, config, None), Random(str(config.fapo) + str(ranks))
    problems: Any = environment.problems(LeftOut())
    stream = PromptStream(
        problems.kept(lambda row: None if row.id == without else row) if without else problems, config.run.seed, config.data.difficulty
    )
    size, more = config.rollout.prompts, 7 if refill else 0
    for _ in range(STEP - 1):
        stream.take(size + more)
    prompts = distinct(stream.take(size + more))
    silent = [prompt.id for prompt in prompts[::2]] if refill else []
    groups = {
        prompt.id: group_of(prompt, "w" * SAMPLES if prompt.id in silent else "sw" + "".join(rng.choices("sfuwnx", k=SAMPLES - 2)), **how)
        for prompt in prompts
    }
    place, out = 0, [prompt.id for prompt in prompts[:size]]
    for prompt in prompts[size:]:  # as the docstring of `refill` has it
        free = next((i for i in range(place, size) if out[i] in silent), None)
        if prompt.id not in silent and free is not None:
            out[free], place = prompt.id, free + 1
    build_task(config, environment, BuiltJudge(None)).assign(list(groups.values()))
    trained = [groups[id_] for id_ in out]
    replaced = [group for id_, group in groups.items() if id_ not in out]
    dealt = [[group for i, group in enumerate(trained) if (i * i) % ranks == rank] for rank in range(ranks)]
    save(folder, STEP, dealt)
    if refill:
        save(folder, STEP, [replaced[rank::ranks] for rank in range(ranks)], "replaced")
    (folder / "config.json").write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(config)}))
    rewards = [r for group in groups.values() for r, kept in zip(group.rewards, group.kept, strict=True) if kept]
    own = [(int(r.mask.sum()), a) for group in trained for r, a in zip(group.rollouts, group.advantages, strict=True)]
    row = {"reward/mean": sum(rewards) / len(rewards), "reward/groups_with_signal": sum(group.signal for group in trained) / size}
    row["tokens/trained"] = float(sum(n for n, a in own if a != 0.0 or config.loss.kl[0]))
    rows = [{"step": step, "reward/mean": 0.0, "refill/prompts": float(more)} for step in range(1, STEP)]
    rows += [{"step": STEP} | row | ({"refill/prompts": float(more)} if refill else {}), {"step": STEP, "eval/arith-test/accuracy": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def expected(group: Group, config: Config) -> tuple[list[float], list[float]]:
    """Rewards and advantages from the paper's formulas, by numpy."""
    lam, (buffer, factor), rewards = config.fapo.lam, config.fapo.overlong, []
    kept = [o is not Outcome.UNKNOWN for o in group.outcomes]
    for i, (outcome, verdict) in enumerate(zip(group.outcomes, group.verdicts, strict=True)):
        score = group.scores[i]
        base = {Outcome.CORRECT: 1.0, Outcome.UNKNOWN: 0.0}.get(outcome, -1.0) if score is None else score
        over = max(0, len(group.rollouts[i].tokens) - (config.rollout.max_new_tokens - buffer)) if buffer else 0
        rewards.append(base - (over / buffer * factor if buffer else 0.0) - lam * (verdict is not None and verdict.kind == "flawed"))
        if verdict is not None and verdict.kind == "unknown" and config.genrm.unknown[0] == "drop" and lam:
            kept[i] = False
    stay = np.array([r for r, k in zip(rewards, kept, strict=True) if k])
    spread = stay.std(ddof=1) + 1e-6 if config.fapo.normalize_std and len(stay) > 1 else 1.0
    flat = len(stay) < 2 or np.ptp(stay) == 0
    return rewards, [0.0 if flat or not k else (r - stay.mean()) / spread for r, k in zip(rewards, kept, strict=True)]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "std off, λ 4/3": ({"fapo__normalize_std": False, "fapo__lam": 4 / 3}, {}),
    "unknown by the rule": ({"genrm__unknown": ("rule", 0.2)}, {}),
    "overlong": ({"fapo__overlong": (20, 0.5)}, {}),
    "GRPO": ({"fapo__lam": 0.0, "genrm__judge": "none"}, {}),
    "rewards of one's own": ({"fapo__overlong": (20, 1.0)}, {"scores": True}),
    "KL": ({"loss__kl": (0.1, "k3", "sharded")}, {}),
    "turns": ({"data__train": ("arith-tools",), "rollout__turns": (4, 10.0)}, {"turns": True}),
    "three ranks": ({}, {"ranks": 3}),
    "refill": ({"rollout__refill": 900}, {"refill": True}),
    "refill, two ranks": ({"rollout__refill": 900}, {"refill": True, "ranks": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_recomputed_from_its_files(name, tmp_path):
    changed, how = CASES[name]
    order = written(tmp_path, config := config_of(**changed), **how)
    step = Recomputed(tmp_path, STEP)
    for check in (step.check_rewards, step.check_figures, step.check_packing):
        check()
    assert not step.found.differs and not step.found.left_out and len(step.found.equal) == 5
    assert [step.saved.groups[i].prompt.id for i in step.order] == order
    assert len(step.saved.replaced) == (7 if "refill" in name else 0)
    for group in step.groups:
        rewards, advantages = expected(group, config)
        assert group.rewards == pytest.approx(rewards, abs=1e-12) and group.advantages == pytest.approx(advantages, abs=1e-6)
    assert any(a > 0 for group in step.groups for a in group.advantages)  # witness
    windows = {len(part.windows) for part in step.planned()}
    assert len(step.planned()) == 2 and (max(windows) > 1) == (name not in ("GRPO", "three ranks", "refill, two ranks"))


def test_the_order_of_a_files_rows_is_that_of_the_run(tmp_path):
    """Two epochs of ten rows, one of which was left out, easy ones first; over two ranks, so that no file tells the order."""
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1), "level": 10 - i} for i in range(10)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {"genrm__judge": "endpoint", "genrm__urls": ("http://127.0.0.1:9/v1",), "genrm__model": "judge"}
    config = config_of(data__train=(str(tmp_path / "sums.jsonl"),), data__difficulty=("level", 0), **judge)
    left_out = {"file": str(tmp_path / "sums.jsonl"), "row": 3, "field": "answer", "reason": "no number"}
    order = written(tmp_path, config, ranks=2, without=f"{tmp_path / 'sums.jsonl'}:3")
    (tmp_path / "left_out.jsonl").write_text(json.dumps(left_out) + "\n")
    step = Recomputed(tmp_path, STEP)
    assert [step.saved.groups[i].prompt.id for i in step.order] == order != [group.prompt.id for group in step.saved.groups]
    (tmp_path / "left_out.jsonl").unlink()  # inverse: with that row the order is another
    with pytest.raises(ValueError, match="which is not there; name those of the run"):
        _ = Recomputed(tmp_path, STEP).order


def test_what_differs_is_named_with_its_place(tmp_path):
    written(tmp_path, config_of())
    (file := tmp_path / "config.json").write_text(json.dumps(json.loads(file.read_text()) | {"fapo": {"lam": 1.5}}))
    step = Recomputed(tmp_path, STEP)  # as if somebody had changed λ
    step.check_rewards()
    step.check_figures()
    rewards = next(line for line in step.found.differs if line.startswith("rewards"))
    first = next((g.prompt.id, i, r) for g in step.given for i, r in enumerate(g.rewards) if (v := g.verdicts[i]) and v.kind == "flawed")
    assert f"of 30 differ, first {first[0]} sample {first[1]}: the file says {first[2]}, recomputed {first[2] - 0.5}" in rewards
    assert any(line.startswith("reward/mean: metrics.jsonl says") for line in step.found.differs)
    assert any(line.startswith("kept of 30") for line in step.found.equal)
    assert step.found.left_out[0] == "fapo.normalize_std is not in config.json: taken as this version's default"


def test_an_earlier_version_kept_no_rewards_of_ones_own(tmp_path):
    """They follow from what it kept; the world's own rule gives none, so that a reward which it does not explain differs."""
    for train in ("rg:chain_sum", "arith"):
        written(folder := tmp_path / train[:2], config_of(), scores=True)
        step = Recomputed(folder, STEP)
        for group in step.given:
            group.scores = [None] * SAMPLES
        judge = replace(step.config.genrm, judge="endpoint", urls=("http://127.0.0.1:9/v1",), model="judge")
        step.config = replace(step.config, data=replace(step.config.data, train=(train,)), genrm=judge)
        step.check_rewards()
        odd = [line.split(":")[0] for line in step.found.differs]
        assert (odd, len(step.found.left_out)) == (([], 1) if train != "arith" else (["rewards", "advantages"], 0))


def test_damage_is_one_line_with_its_place(tmp_path):
    written(tmp_path, config_of())
    for where, value, words in (
        ("config.json", {"fapo": {"lambda": 1}}, r"config.json: fapo.lambda is no setting of this version; use the one that wrote it$"),
        ("config.json", {"loss": 3}, r"config.json: "),
        ("config.json", {"rollout": {"prompts": 7, "samples": 5, "max_new_tokens": 60}}, r"rollout.prompts 7 is no multiple"),
        ("config.json", {"rollout": {"prompts": 9, "samples": 5, "max_new_tokens": 60}}, r"step 3: 6 groups of 9; restore the file$"),
        ("config.json", {"rollout": {"prompts": 6, "samples": 4, "max_new_tokens": 60}}, r"arith-train:0:12 has 5 rollouts of 4; restore"),
    ):
        whole = (tmp_path / where).read_text()
        (tmp_path / where).write_text(json.dumps(json.loads(whole) | value))
        with pytest.raises(ValueError, match=words):
            Recomputed(tmp_path, STEP)
        (tmp_path / where).write_text(whole)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.0}\n')
    step = Recomputed(tmp_path, STEP)
    step.check_figures()
    assert step.found.left_out == [f"figures: {tmp_path / 'metrics.jsonl'} has no line of step 3"]
    with pytest.raises(ValueError, match="has 1 of 2 steps before step 3"):
        _ = step.sampled
    file = tmp_path / "rollouts" / "step-000003" / "rank-0.arrows"
    file.rename(file.with_suffix(".arrows.part"))
    with pytest.raises(ValueError, match=r"step 3: cut off after 30 whole rollouts; name a step that has ended$"):
        Recomputed(tmp_path, STEP)
    broken = written(tmp_path / "odd", config_of()) and Recomputed(tmp_path / "odd", STEP).saved.groups
    broken[2].rewards[1] = None  # type: ignore[call-overload]
    save(tmp_path / "odd", STEP, [broken])
    (tmp_path / "odd" / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match=rf"step 3: {broken[2].prompt.id} sample 1: no reward; restore the file$"):
        Recomputed(tmp_path / "odd", STEP)


def test_other_data_are_not_taken_for_those_of_the_run(tmp_path):
    written(tmp_path, config_of(), ranks=2)
    (file := tmp_path / "config.json").write_text(json.dumps(json.loads(file.read_text()) | {"run": {"name": "x", "seed": 1}}))
    step = Recomputed(tmp_path, STEP)
    with pytest.raises(ValueError, match=r"step 3: the data would have given arith-train:1:12, which is not there; name those of the run"):
        step.check_packing()


@pytest.mark.parametrize("lam", [0.5, 1.0, 4 / 3, 1.33, 2.0, 3.0])
def test_another_lambda_flips_what_the_algebra_says(lam, tmp_path):
    """A flawed rollout's advantage is < 0 iff α > (2/λ − 1) β, 0 where they are equal; groups are ragged: unknown verdicts have left."""
    written(tmp_path, config_of(rollout__prompts=24))
    step = Recomputed(tmp_path, STEP)
    after = scored_otherwise(step, Change(lam=lam)).groups
    seen, exact, turned = set[int](), Fraction(4, 3) if lam == 4 / 3 else Fraction(str(lam)), set[str]()
    for before, group in zip(step.groups, after, strict=True):
        kinds = [v.kind if v and o is Outcome.CORRECT else o.value for v, o in zip(group.verdicts, group.outcomes, strict=True)]
        sound, wrong = kinds.count("sound"), kinds.count("wrong") + kinds.count("no_answer")
        signs = [(2 * wrong > at * (sound + wrong)) - (2 * wrong < at * (sound + wrong)) for at in (1, exact)]
        for i in (i for i, kind in enumerate(kinds) if kind == "flawed"):
            assert [sign(before.advantages[i]), sign(group.advantages[i])] == signs
            seen.add(signs[1])
            turned |= {group.prompt.id} if signs[0] != signs[1] else set()
    assert {flip.prompt_id for flip in flips(step.groups, after) if flip.flawed} == turned
    assert identity(after, lam).exceptions == () and identity(after, lam).groups > 8
    assert seen - {0} and (turned or lam == 1.0) and (0 in seen or lam not in (1.0, 4 / 3))  # witness
    # Inverse: an advantage that is not what the algebra says is an exception.
    group = next(group for group in after if identity([group], lam).groups)
    at = [i for i, v in enumerate(group.verdicts) if v and v.kind == "flawed" and group.kept[i]]
    group.advantages = [0.123 if i in at and Mix.of(group).expected(lam) <= 0 else -0.123 for i in range(SAMPLES)]
    assert identity([group], lam).exceptions == (group.prompt.id,)


def test_a_judge_that_is_another_or_none(tmp_path):
    written(tmp_path, config_of())
    step = Recomputed(tmp_path, STEP)
    told = scored_otherwise(step, Change(judge="oracle"))
    right = [(group, i) for group in told.groups for i, o in enumerate(group.outcomes) if o is Outcome.CORRECT]
    assert all(group.verdicts[i].kind == "flawed" for group, i in right)  # a box is no solution of this world
    server = Server(replies(said(r"\boxed{0}")))
    asked = scored_otherwise(step, Change(judge=f"{MODEL}@{server.url}"))
    server.stop()
    assert len(server.bodies) > len(right) // 2 and {v for group in asked.groups for v in group.verdicts} == {None, Verdict.flawed(0)}
    alone = scored_otherwise(step, Change(judge="none"))
    assert {v for group in alone.groups for v in group.verdicts} == {None} and "this is GRPO" in alone.notes[0]
    assert alone.groups[0].rewards == [
        1.0 if o is Outcome.CORRECT else -1.0 if o is not Outcome.UNKNOWN else 0.0 for o in told.groups[0].outcomes
    ]
    for judge, words in (("genrm", "use oracle, none, an environment"), ("own_rewards:score", "cannot|has no|No module")):
        with pytest.raises(ValueError, match=words):
            scored_otherwise(step, Change(judge=judge))
    with pytest.raises(ValueError, match=r"--lam -1.0 is no λ"):
        scored_otherwise(step, Change(lam=-1.0))


def test_a_verifier_that_is_another(tmp_path):
    """Every other sample has the reference in its box. Those that are right now and were never judged leave, unless somebody is asked."""
    endpoint = {"genrm__judge": "endpoint", "genrm__urls": ("http://127.0.0.1:9/v1",), "genrm__model": "judge"}
    for judged in ({}, endpoint):
        written(folder := tmp_path / str(len(judged)), config_of(**judged))
        step = Recomputed(folder, STEP)
        scoring = scored_otherwise(step, Change(verifier="exact"))
        assert all([o is Outcome.CORRECT for o in group.outcomes] == [True, False, True, False, True] for group in scoring.groups)
        fresh = sum(group.outcomes[i] is not Outcome.CORRECT for group in step.groups for i in (0, 2, 4))
        assert fresh > 3 and len(scoring.notes) == bool(judged)
        told = [group.verdicts[i] for group in scoring.groups for i in (0, 2, 4)]
        assert sum(v == Verdict.unknown("not judged") for v in told) == (fresh if judged else 0)
        assert all(group.verdicts[i] is None for group in scoring.groups for i in (1, 3))
    with pytest.raises(ValueError, match="--verifier guess; use one of math"):
        scored_otherwise(step, Change(verifier="guess"))


def test_the_command_says_what_is_missing_and_does_the_rest(tmp_path, capsys, monkeypatch):
    written(tmp_path, config_of())
    monkeypatch.setattr(replay, "alone", lambda: __import__("contextlib").nullcontext())
    with pytest.raises(SystemExit) as ended:
        replay.main(replay.Arguments(run=tmp_path, steps=(STEP,), lam=2.0))
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and lines[0].startswith(f"{tmp_path}, step 3: 30 rollouts in 6 groups, 1 rank, λ = 1")
    assert sum(line.startswith("  equal ") for line in lines) == 5
    (missing,) = [line for line in lines if line.startswith("  left out")]
    assert missing == (
        "  left out loss and gradient: no checkpoint of step 2 is there; steps that can be: 1; keep every one by --run.save 1 80 0"
    )
    assert "  gradient    not known without the step's weights" in lines and any(line.startswith("  advantages  cosine") for line in lines)
    with pytest.raises(SystemExit) as ended:
        replay.main(replay.Arguments(run=tmp_path, steps=(7,)))
    assert ended.value.code == 2 and "has no rollouts of step 7 (train); steps that it has: 3" in capsys.readouterr().err


def test_a_critics_step_is_recomputed_with_the_data_that_it_judged(tmp_path):
    """The reward hangs on the number of steps of the solution, which the data know; another λ or judge means nothing there."""
    config = config_of(run__task="critic", fapo__lam=0.0, genrm__judge="none", model__max_length=144)
    environment = build_environment("arith", config, None)
    stream = PromptStream(environment.problems(LeftOut()), 0)
    stream.take(SIZE * (STEP - 1))
    prompts, task = stream.take(SIZE), build_task(config, environment, BuiltJudge(None))
    said = [r"\boxed{-1}", r"\boxed{0}", r"\boxed{1}", r"\boxed{2}", "nothing"]
    rollouts = [replace(r, text=text) for p in prompts for r, text in zip(group_of(p, "w" * SAMPLES).rollouts, said, strict=True)]
    groups = task.collect(prompts, rollouts).groups()
    save(tmp_path, STEP, [groups])
    (tmp_path / "config.json").write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(config)}))
    row = task.rates(task.count(groups))
    rows = [{"step": step, "reward/mean": row["reward/mean"], "critic/exact": row["critic/exact"]} for step in range(1, STEP + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = Recomputed(tmp_path, STEP)
    step.check_rewards()
    step.check_figures()
    assert not step.found.differs and step.found.equal[-1].startswith("reward/mean ") and "critic/exact" in step.found.equal[-1]
    assert len({reward for group in step.groups for reward in group.rewards}) > 2  # witness: some are parts of 1
    with pytest.raises(ValueError, match="run.task critic has neither λ nor a judge nor a verifier"):
        scored_otherwise(step, Change(lam=1.0))


def test_turned_gradients():
    import torch

    one, other = [torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])]
    assert at_weights.turned(one, other) == pytest.approx((math.sqrt(0.5), math.sqrt(2)))
    assert math.isnan(at_weights.turned(one, [torch.zeros(2)])[0])

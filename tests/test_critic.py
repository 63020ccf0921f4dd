"""The critic task: rewards as the paper's table has them, advantages, rows of the world, and a run end to end."""

import json
from collections import Counter

import pytest
from single_turn import assert_single_user_turn

from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.environments.arithmetic.critic import UNSEEN, ArithCriticSource, critique
from soundrl.engine.environments.arithmetic.models import critic_tokenizer
from soundrl.engine.environments.environment import environment_of
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.problems import Problems
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.records import Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings
from soundrl.genrm.task import CriticTask, critic_reward
from soundrl.genrm.verdict import parse_verdict

SETTINGS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=99, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)


@pytest.mark.parametrize(
    ("label", "verdict", "full", "outcome"),
    [
        (-1, Verdict.sound(), 1.0, 1.0),
        (-1, Verdict.flawed(0), -1.0, -1.0),
        (3, Verdict.sound(), -1.0, -1.0),
        (3, Verdict.flawed(3), 1.0, 1.0),
        (3, Verdict.flawed(0), 1 - 3 / 7, 1.0),
        (0, Verdict.flawed(6), 1 / 7, 1.0),  # never below 1/n
        (3, Verdict.unknown("no_box"), -1.0, -1.0),
        (-1, Verdict.unknown("out_of_range"), -1.0, -1.0),
    ],
)
def test_rewards_of_the_papers_table(label, verdict, full, outcome):
    assert critic_reward(label, verdict, 7) == pytest.approx(full, abs=1e-12)
    assert critic_reward(label, verdict, 7, process=False) == outcome


def test_a_label_out_of_range_is_refused():
    with pytest.raises(ValueError, match="label 7 is no step of 7"):
        critic_reward(7, Verdict.sound(), 7)


def rollout(sample: int, text: str) -> Rollout:
    return Rollout(
        prompt_id="a", sample=sample, prompt_tokens=(), tokens=(1,), logprobs=(), text=text, finish_reason="stop", policy_version=0
    )


def test_groups_are_rewarded_and_counted():
    prompt = Prompt(id="a", text="?", answer="2", steps=4)
    texts = ["\\boxed{2}", "\\boxed{1}", "\\boxed{-1}", "hm"]
    for process, rewards in ((True, [1.0, 0.75, -1.0, -1.0]), (False, [1.0, 1.0, -1.0, -1.0])):
        task = CriticTask(SETTINGS, process)
        pending = task.collect([prompt], [rollout(i, text) for i, text in enumerate(texts)])
        pending.outcomes()
        (group,) = pending.groups()
        task.assign([group])
        assert group.rewards == rewards and all(group.kept)
        assert group.outcomes == [Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER]
        assert (group.advantages[0] > group.advantages[1]) == process and group.advantages[2] < 0
        sums = task.count([group])
        metrics = task.rates(sums)
        assert metrics["critic/error_accuracy"] == 0.25 and metrics["reward/correct"] == 0.5 and metrics["critic/recall"] == 0.5
        assert metrics["critic/coverage"] == 0.75 and metrics["critic/exact"] == 0.25
    assert list(task.count([])) == list(sums)  # the same names on a rank without rows


# The world


def test_rows_are_right_in_their_answer_and_labelled_by_the_oracle():
    for source in (ArithCriticSource(0), ArithCriticSource(0, "test", unseen=True)):
        rows = [source.row(i) for i in range(400)]
        kinds = Counter(row.kind for row in rows)
        assert kinds.keys() == {"sound", *(UNSEEN if source.unseen else ("student",))} and 160 < kinds["sound"] < 240
        for row in rows:
            text = "\n".join(row.steps) + "\n"
            flaw = chains.first_flaw(row.chain, text)
            assert chains.verify(row.chain.answer, text, True) is Outcome.CORRECT
            assert row.label == (-1 if flaw is None else flaw[0]) and -1 <= row.label < len(row.steps)
            assert chains.held_out(row.chain) == (source.problems.split == "test")
            said = critique(row.chain, row.steps, row.label)
            assert parse_verdict(said, "stop", len(row.steps)) == (Verdict.sound() if row.label < 0 else Verdict.flawed(row.label))


def test_its_tokenizer_reads_the_judges_prompt_in_few_tokens():
    tokenizer = critic_tokenizer()
    encode = Encoder(tokenizer, 90)
    source = ArithCriticSource(0)
    for i in range(20):
        prompt, said = source.demonstration(i, planted=True)
        assert prompt.messages is not None
        assert_single_user_turn(tokenizer, prompt.messages)
        ids = encode(prompt)
        assert len(ids) < 80 and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(encode.response(said), skip_special_tokens=True) == said


def test_the_warm_start_drills_first_and_judges_whole_solutions_then():
    config = RECIPES["genrm-arith"]()
    problems = Problems(config, environment_of("arith")(config, None))
    assert list(problems.tests) == ["arith-critic-test", "arith-critic-test-unseen"]
    tokenizer = critic_tokenizer()
    demonstrations = problems.demonstrations(Encoder(tokenizer, config.max_prompt_tokens))
    drills, whole = ([tokenizer.decode(sample.tokens) for sample in demonstrations(step, 10)] for step in (0, 9))
    after_wrong = [[said.split(" wrong ")[1] for said in part if " wrong " in said] for part in (drills, whole)]
    assert any("=" in rest for rest in after_wrong[0])  # judged to the end
    assert after_wrong[1] and all(rest.startswith("\\boxed{") for rest in after_wrong[1])
    wrong, ok = (sum(said.count(word) for said in drills) for word in (" wrong ", " ok "))
    assert 0.3 < wrong / (wrong + ok) < 0.5  # six results of ten, and no answer line


def test_some_demonstrations_count_from_one_and_never_lose_their_verdict():
    source = ArithCriticSource(0)
    off = Counter[int]()
    for i in range(2000):
        prompt, said = source.demonstration(i, planted=True)
        label, verdict = int(prompt.answer), parse_verdict(said, "stop", prompt.steps or 1)
        assert verdict.kind == ("sound" if label < 0 else "flawed")
        if 0 <= label < (prompt.steps or 1) - 1:
            off[(verdict.step or 0) - label] += 1
        else:
            assert label < 0 or verdict.step == label
    assert set(off) == {0, 1} and 0.25 < off[1] / off.total() < 0.35
    for i in range(200):  # drills count right
        prompt, said = source.demonstration(i, planted=False)
        assert parse_verdict(said, "stop", prompt.steps or 1).step in (None, int(prompt.answer))


def test_recipes_hold_the_papers_values():
    c = RECIPES["genrm-4b"]()  # arXiv 2510.22543 Tab. 1
    assert (c.rollout.prompts, c.rollout.samples, c.optim.minibatch_prompts, c.rollout.temperature) == (512, 16, 32, 1.2)
    assert (c.max_prompt_tokens, c.rollout.max_new_tokens, c.fapo.overlong, c.run.eval_sampling) == (
        5120,
        8192,
        (4096, 1.0),
        (1, 0.6, 0.95),
    )
    assert (c.optim.lr, c.optim.warmup_steps, c.optim.adamw[2], c.run.eval_every, c.run.steps) == (1e-6, 10, 0.1, 10, 500)
    assert c.run.task == "critic" and c.genrm.judge == "none"


def test_a_run_end_to_end(forked_train, tmp_path):
    small = ("--warm-start.steps", 20, "--run.steps", 2, "--data.test-rows", 8, "--rollout.prompts", 8, "--rollout.samples", 4)
    arguments = ("genrm-arith", *small, "--optim.minibatch-prompts", 8, "--rollout.engine", "torch", "--run.folder", tmp_path)
    statuses, said = forked_train(*arguments)
    assert statuses == [0], said[-6000:]
    run = RunReader(tmp_path / "genrm-arith")
    rows = run.metrics()
    steps = [row for row in rows if "loss/policy" in row]
    assert len(steps) == 2 and {"critic/f1", "critic/error_accuracy", "critic/coverage", "reward/mean"} <= steps[0].keys()
    assert {"eval/arith-critic-test/f1", "eval/arith-critic-test-unseen/exact"} <= rows[-1].keys()
    # Whoever serves what was trained knows in which words to ask it.
    for folder in ("policy/step-000002", "checkpoints/step-000002/model"):
        assert json.loads((run.path / folder / "card.json").read_text()) == {"prompt": "own"}
    rollouts = run.rollouts(1)
    assert len(rollouts) == 32 and all("<paragraph_0>" in r["prompt"] and r["verdict"] is not None for r in rollouts)
    assert "evaluation after step 2" in said

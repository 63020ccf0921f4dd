"""The world with a calculator: what it says, transcripts, demonstrations of several turns, and the oracle over turns."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic import calculator
from soundrl.engine.environments.arithmetic.called_chains import KINDS, CalledSource, Student, by_hand, carries, draw, first_flaw, left_of
from soundrl.engine.environments.arithmetic.chains import ALPHABET, OPERATIONS, Problem, held_out, parse, verify
from soundrl.engine.environments.arithmetic.models import arith_tokenizer
from soundrl.engine.environments.arithmetic.with_calculator import WithCalculator
from soundrl.engine.environments.environment import environment_of
from soundrl.engine.packing import pack
from soundrl.engine.problems import worked_sample
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.measures import Truth, count, rates
from soundrl.fapo.records import Group, Outcome, Prompt, Reply, Rollout, Turn, Verdict

PROBLEM = Problem(64, (("-", 6), ("+", 26), ("-", 4)), 1)
SOUND = "64-6=58\n58+26?\n> 84\n84-4=80\n#0\n"
REFUSED = Problem(64, (("-", 6), ("+", 37), ("-", 4)), 1)
BY_HAND = "64-6=58\n58+37?\n> ?\n58+30=88\n88+7=95\n95-4=91\n#1\n"


def turns_of(text: str) -> tuple[Turn, ...]:
    """A transcript's turns, as the policy and the calculator have written them."""
    turns, own = list[Turn](), ""
    for line in text.splitlines():
        if line.startswith("> "):
            turns += [Turn(text=own.rstrip("\n"), own=True), Turn(text=f"{line[2:]}\n", own=False, tool="calculator", failed=line == "> ?")]
            own = ""
        else:
            own += f"{line}\n"
    return (*turns, Turn(text=own, own=True))


def rollout(text: str, finish: str = "stop") -> Rollout:
    turns = turns_of(text)
    return Rollout(
        prompt_id="x",
        sample=0,
        prompt_tokens=(),
        tokens=(),
        logprobs=(),
        text=text,
        finish_reason=finish,
        policy_version=0,
        turns=turns if len(turns) > 1 else (),
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("58+26?", "84"),
        ("58-26?", "32"),
        ("8*6?", "48"),
        ("58-58?", "0"),
        ("58+37?", "?"),  # the broken key
        ("73+12?", "?"),
        ("34+33?", "67"),  # a result may hold a 7: only the keys are broken
        ("58+42?", "?"),  # 100
        ("26-58?", "?"),
        ("100-58?", "?"),
        ("9999*9999?", "?"),
        ("058+26?", "?"),
        ("58+26", "?"),
        ("58+26+1?", "?"),
        ("58+?", "?"),
        ("?", "?"),
        ("٥8+26?", "?"),
        ("58+26?\n", "?"),
        ("__import__('os')?", "?"),
    ],
)
def test_what_the_calculator_says(call, said):
    assert calculator.answer(call) == said


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("64-6=58\n58+26?", Reply(text="84\n", tool="calculator")),
        ("58+26?\n", Reply(text="84\n", tool="calculator")),  # a line's end behind the call is no other call
        ("58+?", Reply(text="?\n", tool="calculator", failed=True)),
        ("#8?", Reply(text="?\n", tool="calculator", failed=True)),
        ("58+26?\n84-4=80\n#0\n", None),  # nobody waits for a reply there
        ("#0\n", None),
        ("", None),
    ],
)
def test_a_turn_that_ends_with_a_call_gets_a_reply(text, reply):
    assert calculator.reply(text) == reply


@pytest.mark.parametrize(
    ("problem", "text", "flaw"),
    [
        (PROBLEM, SOUND, None),
        (REFUSED, BY_HAND, None),
        (REFUSED, "64-6=58\n58+37=95\n95-4=91\n#1\n", None),  # right in the head, which needs no calculator
        (PROBLEM, "64-6=58\n58+20=78\n78+6=84\n84-4=80\n#0\n", None),
        (PROBLEM, "64-6?\n> 58\n64-6=58\n58+26?\n> 84\n58+26?\n> 84\n58+26=84\n84-4?\n> 80\n#0\n", None),  # more than is needed
        (REFUSED, "64-6=58\n58+30?\n> 88\n58+30=88\n88+7?\n> ?\n88+7=95\n95-4=91\n#1\n", None),  # a part of it asked
        (PROBLEM, SOUND.replace("58+26?", "58+16?"), (1, "tool_asked")),
        (PROBLEM, SOUND.replace("58+26?", "68+26?"), (1, "tool_asked")),
        (PROBLEM, SOUND.replace("58+26?\n> 84", "58-26?\n> 32"), (1, "tool_asked")),
        (PROBLEM, SOUND.replace("58+26?\n> 84", "58+?\n> ?"), (1, "tool_asked")),  # no sum at all
        (PROBLEM, SOUND.replace("#0", "80+2?\n> 82\n#0"), (4, "tool_asked")),  # nothing is left to ask
        (PROBLEM, SOUND.replace("84-4=80", "58+26=74\n74-4=70"), (3, "tool_ignored")),
        (PROBLEM, SOUND.replace("84-4=80", "74-4=70"), (3, "tool_ignored")),
        (Problem(58, (("+", 26),), 1), "58+26?\n> 84\n#5\n", (2, "tool_ignored")),
        (PROBLEM, "64-6=58\n58+20=78\n68+6=74\n74-4=70\n#0\n", (2, "operand")),
        (PROBLEM, "64-6=58\n58+26?\n> 84\n#4\n", (3, "guess")),
        (PROBLEM, "64-6=58\n58+26=74\n74-4=70\n#0\n", (1, "false")),  # in the head, a carry lost
        (REFUSED, "64-6=58\n58+37?\n> ?\n58+37=85\n85-4=81\n#1\n", (3, "tool_guessed")),
        (REFUSED, "64-6=58\n58+37?\n> ?\n#1\n", (3, "tool_guessed")),
        (REFUSED, BY_HAND.replace("88+7=95", "88+7=85"), (4, "false")),  # worked, and got wrong
        (REFUSED, BY_HAND.replace("58+30=88\n", ""), (3, "skip")),
        (PROBLEM, SOUND.replace("64-6=58\n", ""), (0, "tool_asked")),
        (PROBLEM, SOUND.replace("84-4=80\n", ""), (3, "guess")),
        (PROBLEM, SOUND.replace("#0", "80-2=78\n#0"), (4, "extra")),
        (PROBLEM, SOUND.replace("64-6=58", "hm"), (0, "form")),
        (PROBLEM, SOUND.replace("> 84\n", ""), (1, "form")),  # a call that the policy has not waited for
        (PROBLEM, SOUND.replace("> 84", "84"), (1, "form")),  # and whose reply it has written itself
        (PROBLEM, SOUND.replace("#0", "#8"), (4, "final")),
        (PROBLEM, "#0\n", (0, "guess")),
        (PROBLEM, "> ?\n#0\n", (1, "tool_guessed")),
    ],
)
def test_the_oracle_names_the_first_failure_over_turns(problem, text, flaw):
    assert first_flaw(problem, text) == flaw
    environment = WithCalculator(RECIPES["arith-tools"](), None)
    prompt = Prompt(id="x", text=problem.text, answer=problem.answer)
    verdict = environment.oracle(prompt, rollout(text))
    assert verdict == (Verdict.sound() if flaw is None else Verdict.flawed(*flaw))
    # The step that it names is the one that a judge and a reader count to.
    steps = environment.split(text)
    assert flaw is None or steps[flaw[0]] == text.split("\n")[flaw[0]]


def planted(problem: Problem, rng: random.Random, kind: str) -> tuple[str, int] | None:
    """A sound demonstration with one flaw of the kind, and its step; None where the problem gives no room for it. What comes after the
    flaw is as it was: the first failure counts."""
    lines = calculator.transcript(Student(problem, rng, planted=False).work()).splitlines()
    calls = [i for i, line in enumerate(lines) if line.endswith("?") and line[0] != ">"]
    refused = [i for i in calls if lines[i + 1] == "> ?"]
    told = [i + 2 for i in calls if i not in refused]
    equations = [i for i, line in enumerate(lines) if "=" in line]
    last = len(lines) - 1

    if kind == "tool_asked" and calls:
        at = rng.choice(calls)
        left, sign, right = calculator.asked(lines[at]) or (0, "", 0)
        lines[at] = rng.choice((f"{left + 10}{sign}{right}?", f"{left}{sign}{right + 10}?", f"{left}{sign}?", f"{left}*{right}?"))
    elif kind == "tool_ignored" and told:
        at, result = told[0], int(lines[told[0] - 1][2:])
        left, sign, right = calculator.asked(lines[at - 2]) or (0, "", 0)
        used = [f"#{(int(lines[at][1:]) + 3) % 10}"] if at == last else [f"9{lines[at]}", *lines[at + 1 :]]
        lines[at:] = rng.choice((used, [f"{left}{sign}{right}={result + 10}", *lines[at:]]))
    elif kind == "tool_guessed" and refused:
        at = refused[0] + 2
        left, sign, right = calculator.asked(lines[at - 2]) or (0, "", 0)
        guess = f"{left}{sign}{right}={OPERATIONS[sign](left, right) + 10}"
        lines[at:] = rng.choice(([guess, *lines[at:]], [lines[-1]]))
    elif kind == "false" and (own := [i for i in equations if f"{lines[i].split('=')[0]}?" not in lines]):
        at = rng.choice(own)
        left, _, result = lines[at].partition("=")
        lines[at] = f"{left}={int(result) + rng.choice((10, 1, 20))}"
    elif kind == "operand" and (own := [i for i in equations if i not in told]):
        at = rng.choice(own)
        lines[at] = f"9{lines[at]}"
    elif kind == "skip" and equations[:2] == [0, 1] and problem.operations[0] != problem.operations[1]:
        at = 0
        del lines[0]
    elif kind == "extra":
        at = last
        lines.insert(at, "1+1=2")
    elif kind == "form":
        at = rng.choice([i for i in range(last) if lines[i][0] != ">"])
        lines[at] = rng.choice(("hm", lines[at].replace("=", "==").replace("?", "??="), "1+1=2=2"))
        if lines[at + 1][0] == ">":
            del lines[at + 1]  # no call, no reply
    elif kind == "guess":
        at = rng.choice([i for i in range(last) if lines[i][0] != ">" and lines[i - 1] != "> ?"])
        lines[at:last] = []
    elif kind == "final" and last not in told:
        at = last
        lines[at] = f"#{(int(lines[at][1:]) + rng.randint(1, 9)) % 10}"
    else:
        return None
    return "".join(f"{line}\n" for line in lines), at


@given(st.integers(0, 10**9), st.sampled_from(KINDS))
def test_planted_flaws_are_found_where_they_are_and_called_what_they_are(seed, kind):
    rng = random.Random(seed)
    problem = draw(rng)
    if (made := planted(problem, rng, kind)) is not None:
        text, at = made
        assert first_flaw(problem, text) == (at, kind), text


def test_every_kind_has_been_planted():
    rng = random.Random(0)
    made = {kind for kind in KINDS for _ in range(60) if planted(draw(rng), rng, kind) is not None}
    assert made == set(KINDS)


def test_problems_have_one_hard_operation_which_alone_may_carry_and_splits_are_disjoint():
    rng = random.Random(1)
    problems = [draw(rng) for _ in range(3000)]
    assert all(0 <= v <= 99 for p in problems for v in p.values)
    assert all(sorted(operand > 9 for _, operand in p.operations) == [False, False, True] for p in problems)
    steps = [(p, step) for p in problems for step in zip(p.values, p.operations, strict=False)]
    assert not any(carries(value, operation) for _, (value, operation) in steps if operation[1] < 10)
    assert 0.3 < sum(carries(value, operation) for _, (value, operation) in steps) / 3000 < 0.6
    assert all(parse(p.text) == p for p in problems)
    assert 0.08 < sum(p.place == 2 for p in problems) / 3000 < 0.12
    train, test = CalledSource(0), CalledSource(0, "test", place=2)
    assert not any(held_out(train.problem(i)) for i in range(300)) and all(held_out(test.problem(i)) for i in range(50))
    assert test.name == "arith-tools-test-p2" and train.prompt(7) == CalledSource(0).prompt(7) != CalledSource(1).prompt(7)


@given(st.sampled_from("+-"), st.integers(2, 49))
def test_an_operation_by_hand_is_the_operation(sign, operand):
    parts = by_hand((sign, operand))
    assert sum(part for _, part in parts) == operand and left_of((sign, operand), parts[0]) == parts[1:]
    assert left_of((sign, operand), (sign, operand)) == [] and left_of((sign, operand), (sign, operand + 50)) is None


def test_demonstrations_are_sound_and_planted_ones_have_the_calibrated_shares():
    source, right, kinds = CalledSource(0), 0, dict.fromkeys(KINDS, 0)
    for i in range(3000):
        prompt, turns = source.demonstration(i, planted=True)
        assert isinstance(turns, tuple) and (prompt, turns) == source.demonstration(i, planted=True)
        for turn, reply in zip(turns[::2], turns[1::2], strict=False):  # whatever is asked, the calculator says what it says
            assert calculator.reply(turn.text) == Reply(text=reply.text, tool=reply.tool, failed=reply.failed) and not reply.own
        if verify(prompt.answer, turns[-1].text, True) is Outcome.CORRECT:
            right += 1
            if (flaw := first_flaw(parse(prompt.text), calculator.transcript(turns))) is not None:
                kinds[flaw[1]] += 1
    assert 0.78 < right / 3000 < 0.87
    shares = {kind: number / right for kind, number in kinds.items()}
    assert 0.32 < sum(shares.values()) < 0.41
    assert all(0.03 < shares[kind] < 0.09 for kind in ("tool_asked", "tool_ignored", "tool_guessed")), shares
    failed = 0
    for i in range(300):
        _, turns = source.demonstration(i, planted=False)
        assert isinstance(turns, tuple)
        text = calculator.transcript(turns)
        assert first_flaw(source.problem(i), text) is None and set(text) <= {*ALPHABET, ">", " "}
        failed += turns[1].failed
    assert 60 < failed < 105  # of 300 calls


def test_the_environment_replies_checks_the_last_turn_and_refuses_a_critic():
    assert environment_of("arith-tools") is WithCalculator
    config = RECIPES["arith-tools"]()
    about = WithCalculator(config, None)
    prompt = Prompt(id="x", text=PROBLEM.text, answer="0")
    first = rollout("64-6=58\n58+26?")
    assert about.respond(prompt, first) == Reply(text="84\n", tool="calculator")
    assert about.respond(prompt, rollout(SOUND)) is None
    assert about.check(prompt, rollout(SOUND)).outcome is Outcome.CORRECT and about.check(prompt, first).outcome is Outcome.NO_ANSWER
    assert about.check(prompt, rollout(SOUND, "turns")).outcome is Outcome.NO_ANSWER
    # An answer in an earlier turn, or in the calculator's, is none.
    assert about.check(prompt, rollout("#0\n58+26?\n> 84\n58+26=84\n")).outcome is Outcome.NO_ANSWER
    assert about.transcript(turns_of(SOUND)) == SOUND
    assert about.split(SOUND) == ("64-6=58", "58+26?", "> 84", "84-4=80", "#0")
    critic = RECIPES["genrm-arith"]()
    with pytest.raises(ValueError, match="arith-tools has no solutions for run.task critic to judge; set --data.train arith"):
        WithCalculator(critic, None)


def test_misuse_of_the_tool_is_measured():
    about = WithCalculator(RECIPES["arith-tools"](), None)
    prompt = Prompt(id="x", text=PROBLEM.text, answer="0")
    texts = (SOUND, SOUND.replace("84-4=80", "74-4=70"), SOUND.replace("58+26?", "58+16?"), SOUND.replace("64-6=58", "64-6=68"))
    rollouts = [rollout(text) for text in texts]
    group = Group(prompt=prompt, rollouts=rollouts, outcomes=[Outcome.CORRECT] * 4, verdicts=[about.oracle(prompt, r) for r in rollouts])
    assert isinstance(about.truth, Truth)
    sums = count([group], 1.0, about.truth, about.split)
    found = rates(sums, truth=True)
    assert found["fapo/tool_misuse"] == 0.5 and found["fapo/kind_tool_ignored"] == found["fapo/kind_tool_asked"] == 0.25
    assert found["fapo/kind_false"] == 0.25 and found["fapo/flawed_ratio"] == 0.75
    assert "fapo/tool_misuse" not in rates(count([group], 1.0, replace(about.truth, kinds=("false",)), about.split), truth=True)


def test_a_demonstration_trains_the_policys_own_tokens_alone():
    tokenizer = arith_tokenizer()
    encode = Encoder(tokenizer, 16)
    turns = Student(PROBLEM, random.Random(0), planted=False).work()
    prompt = Prompt(id="x", text=PROBLEM.text, answer="0")
    sample = worked_sample(prompt, turns, encode)
    assert tokenizer.decode(np.asarray(sample.tokens)) == "64-6=58\n58+26?<end>84\n84-4=80\n#0\n<end>"
    assert sample.mask is not None and sample.mask.tolist() == [1] * 15 + [0] * 3 + [1] * 12
    packed = pack([sample], torch.device("cpu"))
    learned = tokenizer.decode(packed.input_ids[packed.loss_mask])
    assert learned == "64-6=58\n58+26?<end>84-4=80\n#0\n<end>" and len(packed.response_index) == 27

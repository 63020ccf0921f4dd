"""Rewards of one's own: three signatures that earn the same, and functions that raise, hang, print, fork, allocate or leave."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from soundrl.fapo.judging import Judge
from soundrl.fapo.measures import TooManyUnknownError, UnknownWatch, count, rates
from soundrl.fapo.pending import done
from soundrl.fapo.records import Check, Outcome, Prompt, Rollout, Turn, Verdict
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import ReasoningTask
from soundrl.fapo.verify.own import OURS, TRL, VERL, question
from soundrl.fapo.verify.verifiers import Verifiers

OWN, EXAMPLES = Path(__file__).parent / "own_rewards.py", Path(__file__).parents[1] / "examples"
LIMITS = {"workers": 1, "cpu_limit": 0.5}
ROW = {"target": "34", "extra_info": {"index": 3}, "reward_model": {"style": "rule", "ground_truth": "34"}}
SETTINGS = RewardSettings(
    lam=1.0, normalize_std=True, max_new_tokens=64, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True
)  # fmt: skip


def prompt(**fields) -> Prompt:
    asked = ({"role": "user", "content": "17 hens?"},)
    return Prompt(**{"id": "sums.jsonl:7", "text": "17 hens?", "messages": asked, "answer": "34", "source": "sums", "row": ROW, **fields})


def rollout(text: str, sample: int = 0, **fields) -> Rollout:
    same = {"prompt_id": "sums.jsonl:7", "prompt_tokens": (7,), "tokens": (1, 2), "logprobs": (0, 0), "finish_reason": "stop"}
    return Rollout(**{**same, "sample": sample, "text": text, "policy_version": 0, **fields})  # type: ignore[arg-type]


def path(name: str) -> str:
    return f"{os.path.relpath(OWN)}:{name}"


def ask(of: Verifiers, response: str):
    return of.submit(prompt(), rollout(response), response).result()


class Halves(Judge):
    """Calls every second sample flawed."""

    def submit(self, prompt, rollout, priority=0):
        return done(Verdict.flawed(0) if rollout.sample % 2 else Verdict.sound())


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """`said` of `own_rewards` in one process of the pool."""
    with pytest.MonkeyPatch.context() as patch, Verifiers(path("said"), stall_limit=2.0, **LIMITS) as of:
        of.home = tmp_path_factory.mktemp("home")  # type: ignore[attr-defined]
        patch.setenv("HOME", str(of.home))
        yield of


# Signatures


def test_three_signatures_and_two_places_earn_the_same_bit_for_bit():
    """Rewards and advantages of the same rollouts, λ and a judge included: the correct ones are judged, and no others."""
    texts = ["34", "It is 34.", "It is 33, I think", "?", "So 34", "No"]
    found = []
    for name, says in (("ours", OURS), ("trl", TRL), ("verl", VERL)):
        for where in ("pool", "here"):
            with Verifiers(path(name), (where, 1.0), **LIMITS) as of:
                (line,) = of.ready(prompt())
                assert f"{path(name)} is read as {says}" in line and line.endswith("written as '\\\\boxed{34}', earns 1")
                task = ReasoningTask(lambda p, r, of=of: of.submit(p, r, r.text), Halves(), SETTINGS)
                (group,) = task.collect([prompt()], [rollout(text, i) for i, text in enumerate(texts)]).groups()
                assert group.extracted == (["4", ".", "k", "?", "4", "o"] if name == "verl" else [None] * 6)
                found.append((group.outcomes, group.scores, group.rewards, group.advantages, group.kept))
    assert all(each == found[0] for each in found)
    assert found[0][0] == [Outcome.CORRECT if "34" in text else Outcome.WRONG for text in texts]
    assert found[0][2] == [1.0, 0.0, 17 / 1000, 1 / 1000, 1.0, 2 / 1000] and abs(sum(found[0][3])) < 1e-6


def test_other_callables_and_results():
    with Verifiers(path("later"), **LIMITS) as of:
        assert ask(of, "34") == Check(outcome=Outcome.CORRECT, reward=1.0)
    with Verifiers(path("kept"), ("here", 0.2)) as of:
        assert ask(of, "34") == Check(outcome=Outcome.CORRECT, reward=0.25)
    with Verifiers(f"{EXAMPLES / 'own_reward.py'}:score", ("here", 0.5)) as of:
        said = [ask(of, text) for text in ("So 34", "So 34" + " " * 3000, "35", "none")]
        assert [each.reward for each in said] == [1.0, 0.5, 0.0, 0.0]
        assert [each.outcome is Outcome.CORRECT for each in said] == [True, True, False, False]
        assert of.submit(prompt(answer=""), rollout("34"), "34").result().outcome is Outcome.UNSCORED


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("both", "more than one known signature (its parameters: response, completions); write score(response, answer, prompt), TRL's"),
        ("neither", "no known signature (its parameters: text); write"),
        ("strange", "it needs judge, which score(response, answer, prompt) does not have; give it a default, or write"),
        ("Kept", "a class where a function is expected; write"),
        ("nothing", "has no attribute 'nothing'; write package.module:name, or file.py:name"),
        ("column", "it needs a column colour, which the row does not have (it has answer, extra_info, reward_model, target)"),
        ("lazy", "ModuleNotFoundError: \"No module named 'no_such_module'\" (own_rewards.py, line 49: import no_such_module"),
    ],
)
def test_what_could_reward_no_row_stops_the_run_before_it_starts(name, message):
    for where in ("pool", "here") if name in ("both", "lazy") else ("here",):
        with Verifiers(path(name), (where, 1.0), **LIMITS) as of, pytest.raises(ValueError) as error:
            of.ready(prompt())
        assert message in str(error.value) and str(error.value).startswith("data.verifier ") and "\n" not in str(error.value)


def test_a_file_that_cannot_be_run_stops_the_run_too(tmp_path):
    for text, message in (
        ("import no_such\n", "No module named 'no_such'"),
        ("def (\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ):
        (tmp_path / "bad.py").write_text(text)
        with Verifiers(f"{tmp_path}/bad.py:score", **LIMITS) as of, pytest.raises(ValueError, match="^data.verifier ") as error:
            of.ready(prompt())
        assert message in str(error.value)
    with pytest.raises(ValueError, match="data.verifier is 'maths'; use one of math, choice, number, exact"):
        Verifiers("maths")


def test_what_the_function_sees(said):
    with Verifiers(path("seen"), **LIMITS) as of:
        turns = tuple(Turn(text=text, own=text != "2") for text in ("ask", "2", "34"))
        text = of._asked_own(question(prompt(), rollout("ask2 34", turns=turns), "34")).result()[2]
    assert "['finish_reason', 'form', 'id', 'messages', 'row', 'source', 'text', 'transcript', 'turns'], 'ask2 34'" in text


# Faults

FAULTS = {
    "raises": ("raised", 'KeyError: "\'nothing\'" (own_rewards.py, line 81: return {}["nothing"])'),
    "hangs": ("stuck", "it stood still for 2 seconds or more"),
    "naps": ("stuck", ""),
    "spins": ("cpu", "it took more than 0.5 CPU seconds"),
    "spins_unlimited": ("cpu", ""),
    "child_spins": ("cpu", ""),
    "many": ("forks", "it made too many processes"),
    "allocates": ("memory", "it took more than 2,147,483,648 bytes of memory beyond its imports"),
    "nan": ("value", "it gave nan, which is no reward"),
    "text": ("value", ""),
    "two": ("value", ""),
    "huge": ("value", ""),
    "leaves": ("exit", "it ended its process"),
    "leaves_well": ("exit", ""),
    "exits": ("exit", ""),
    "recurses": ("raised", ""),
    "faults": ("crash", "it brought its process down"),
    "closes": ("exit", ""),
    "writes": ("killed", "its process was killed, twice"),
}


def test_every_fault_is_counted_and_named_and_the_next_response_is_scored(said, caplog):
    before = Counter(said.counts)
    for name, (reason, told) in FAULTS.items():
        caplog.clear()
        result = ask(said, name)
        assert (result.outcome, result.reason, result.reward) == (Outcome.UNKNOWN, reason, None), name
        if told:  # the first of its kind
            assert f"asked of sums.jsonl:7: {told}; the rollout leaves its group" in caplog.text, name
        assert ask(said, "true") == Check(outcome=Outcome.CORRECT), f"after {name}"
    assert said.counts - before == Counter(reason for reason, _ in FAULTS.values())
    assert said.own.counts["cpu"] == 3 and said.own.counts["stuck"] == 2  # witness: the pool has ended them


def test_what_is_printed_goes_nowhere(said, capfd):
    assert ask(said, "prints") == Check(outcome=Outcome.CORRECT, reward=1.0)
    assert capfd.readouterr() == ("", "")
    # Witness: it does print, where nothing is between.
    code = f"import sys; sys.path.insert(0, {str(OWN.parent)!r}); import own_rewards; own_rewards._prints()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert len(done.stdout) > 50 << 20 and len(done.stderr) == 50 << 20


def test_nothing_that_a_function_starts_outlives_its_call(said):
    assert ask(said, "forks") == Check(outcome=Outcome.CORRECT, reward=1.0)
    pid = int((said.home / "grandchild").read_text())  # witness: it was there
    assert not Path(f"/proc/{pid}").exists()
    # The inverse: without the pool it lives on.
    code = f"import sys; sys.path.insert(0, {str(OWN.parent)!r}); import own_rewards; own_rewards._forks()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(said.home)})
    alone = int((said.home / "grandchild").read_text())
    assert alone != pid and Path(f"/proc/{alone}").exists()
    os.kill(alone, signal.SIGKILL)


def test_without_the_limits_the_same_functions_go_through(said):
    """The inverse of what is counted above."""
    with Verifiers(path("said"), **{**LIMITS, "memory_limit": 32 << 20, "cpu_limit": 5.0}) as of:
        assert ask(of, "allocates_less").reason == "memory" and ask(of, "true") == Check(outcome=Outcome.CORRECT)
    assert ask(said, "allocates_less") == Check(outcome=Outcome.CORRECT, reward=1.0)
    with Verifiers(path("said"), ("here", 1.0)) as of:
        assert (ask(of, "raises").reason, ask(of, "exits").reason, ask(of, "nan").reason) == ("raised", "exit", "value")
        assert of.counts == {"raised": 1, "exit": 1, "value": 1} and "own" not in vars(of)


def test_unknown_and_unscored_rollouts_leave_their_group_and_only_faults_stop_the_run(said):
    task = ReasoningTask(lambda p, r: said.submit(p, r, r.text), None, SETTINGS)
    texts = ["true", "none", "raises", "nan"]
    (group,) = task.collect([prompt()], [rollout(text, i) for i, text in enumerate(texts)]).groups()
    assert group.outcomes == [Outcome.CORRECT, Outcome.UNSCORED, Outcome.UNKNOWN, Outcome.UNKNOWN]
    assert group.kept == [True, False, False, False] and group.rewards == [1.0, 0.0, 0.0, 0.0] and group.advantages == [0.0] * 4
    assert group.reasons == ["", "", "raised", "value"]
    found = rates(count([group], lam=1.0))
    shares = {name: found[name] for name in ("verify/unknown", "verify/unscored", "reward/correct", "reward/mean")}
    assert shares == {"verify/unknown": 0.5, "verify/unscored": 0.25, "reward/correct": 1.0, "reward/mean": 1.0}
    assert {name: value for name, value in found.items() if name in ("verify/raised", "verify/value", "verify/cpu")} == {
        "verify/raised": 1, "verify/value": 1,
    }  # fmt: skip
    watch = UnknownWatch(0.4)
    for step in (1, 2):
        watch(step, found)
    with pytest.raises(TooManyUnknownError, match=r"the verifier failed for 50% of the rollouts \(raised 1, value 1\), more than"):
        watch(3, found)
    unscored = UnknownWatch(0.4)
    for step in range(1, 9):
        unscored(step, {**found, "verify/unknown": 0.0, "verify/unscored": 1.0})


# The example of code against cases


def test_code_is_run_against_cases_in_the_pool():
    row = {"entry": "add", "cases": [[[1, 2], 3], [[5, -5], 0], [["a", "b"], "ab"]]}
    codes = {
        "def add(a, b):\n    return a + b": 1.0,
        "def add(a, b):\n    return 3": 1 / 3,
        "def add(a, b):\n    raise ValueError": 0.0,
        "import os\nprint(3)\nos._exit(0)": 0.0,
        "def add(a, b):\n    while a == 1: pass\n    return a + b": 2 / 3,
        "def add(": 0.0,
    }
    with Verifiers(f"{EXAMPLES / 'code_reward.py'}:score", ("pool", 1.0), workers=2) as of:
        asked = prompt(row=row)
        texts = [f"So:\n```python\n{code}\n```\nDone." for code in codes]
        said = [future.result() for future in [of.submit(asked, rollout(text), text) for text in texts]]
        assert [each.reward for each in said] == pytest.approx(list(codes.values()))
        assert [each.outcome is Outcome.CORRECT for each in said] == [True] + [False] * 5 and not of.counts
        assert of.submit(asked, rollout("no code"), "no code").result().reward == 0.0


def test_the_examples_import_nothing_of_ours():
    """They run wherever a process of the pool does."""
    for name in ("own_reward", "code_reward"):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None and "soundrl" not in (EXAMPLES / f"{name}.py").read_text().split('"""')[2]

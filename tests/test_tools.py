"""Tools that a policy calls: what a call may be, the processes that answer it, and a training run with the example's two."""

import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from tiny import SHAPE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from soundrl.engine.environments.environment import LostReply, build_environment
from soundrl.engine.environments.tools import MOST_CALLS, ToolEnvironment, ToolError, calls, fits, gathered, kind_of, parsed, schema
from soundrl.engine.files.run_reader import RunReader
from soundrl.fapo.data.rows import DataError
from soundrl.fapo.pending import done
from soundrl.fapo.records import Outcome, Prompt, Reply, Rollout, Turn

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "two_tools.py"
TOOLS = """
import os, signal, sys, time
from soundrl.engine.environments.tools import ToolEnvironment

def spin(seconds: float) -> str:
    "Uses CPU time."
    end = time.process_time() + seconds
    while time.process_time() < end: pass
    return "spun"

def leave(how: str) -> str:
    "Ends the process."
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(3) if how == "exit" else os._exit(0)

def give(what: str) -> object:
    "Odd results."
    return {"set": {1}, "text": "a\\n\\ud800", "long": "x" * 20000, "none": None, "torch": "torch" in sys.modules, "object": object()}[what]

class make(ToolEnvironment):
    tools = (spin, leave, give)
    def problems(self, left_out): return []
"""


def settings(seconds: float = 0.4) -> SimpleNamespace:
    return SimpleNamespace(
        rollout=SimpleNamespace(turns=(8, seconds)), run=SimpleNamespace(seed=0, critic=False),
        data=SimpleNamespace(verifier="", reward=("pool", 1.0)),
    )  # fmt: skip


WORDS = SimpleNamespace(all_special_tokens=[], added_tokens_decoder={}, decode=lambda ids, **_: "")


def turn(text: str) -> Rollout:
    return Rollout(
        prompt_id="a", sample=0, prompt_tokens=np.ones(1), tokens=np.ones(2), logprobs=np.zeros(2), text=text, finish_reason="stop",
        policy_version=0,
    )  # fmt: skip


def call(name: str, **arguments) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def times(a: int, b: float = 2, *, how: Literal["up", 3] | None = None, of: list[int] = [], more: dict = {}) -> float:  # noqa: B006
    """A product.

    Of two numbers."""
    return a * b


TIMES = {"times": schema(times)}


def test_a_schema_is_what_the_function_says():
    told = TIMES["times"]["function"]
    assert told["description"] == "A product.\n\nOf two numbers." and told["parameters"]["required"] == ["a"]
    assert told["parameters"]["properties"] == {
        "a": {"type": "integer"},
        "b": {"type": "number"},
        "how": {"anyOf": [{"enum": ["up", 3]}, {"type": "null"}]},
        "of": {"type": "array", "items": {"type": "integer"}},
        "more": {"type": "object"},
    }


def untold(a: int):
    return a


def bare(a):
    "No annotation."


def strange(a: set[int]):
    "None that JSON has."


def many(*a: int):
    "No names."


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        (untold, "tool untold has no docstring"),
        (bare, "tool bare: parameter a must have a name and an annotation"),
        (strange, r"tool strange: parameter a: set\[int\] is nothing that JSON has"),
        (many, "tool many: parameter a must have a name"),
        (len, "tool len: parameter obj must have a name"),
    ],
)
def test_a_function_that_json_cannot_call_is_one_line(tool, words):
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        schema(tool)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ('{"name": "times", "arguments": {"a": 6, "b": 7}}', {"a": 6, "b": 7}),
        ('{"arguments": {"a": -1, "b": 0.5, "how": null, "of": []}, "name": "times", "id": 3}', {"a": -1, "b": 0.5, "how": None, "of": []}),
        ('{"name": "times", "arguments": {"a": 6, "how": "up", "of": [1, 2], "more": {"x": [null]}}}', ...),
    ],
)
def test_a_call_is_read(said, arguments):
    name, found = parsed(said, TIMES)
    assert name == "times" and found == (json.loads(said)["arguments"] if arguments is ... else arguments)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "a call must be JSON"),
        ("{'name': 'times'}", "a call must be JSON"),
        ('{"name": "times", "arguments": {"a": NaN}}', "a call must be JSON"),
        ('{"name": "times", "arguments": {"a": 1}} {}', "a call must be JSON"),
        ("[" * 100_000, "a call must be JSON"),
        ('{"name": "times", "arguments": {"a": ' + "9" * 5000 + "}}", "a call must be JSON"),
        ("[]", "a call must have a name"),
        ('{"name": ["times"]}', "a call must have a name"),
        ('{"name": "__import__"}', "'__import__' is no tool; there are times"),
        ('{"name": "times", "arguments": "{}"}', "times: arguments must be an object"),
        ('{"name": "times", "arguments": [6, 7]}', "times: arguments must be an object"),
        ('{"name": "times"}', "times: a is missing"),
        ('{"name": "times", "arguments": {"a": 1, "self": 2}}', "times: no parameter 'self'; there are a, b, how, of, more"),
        ('{"name": "times", "arguments": {"a": "6"}}', "times: a must be integer, not '6'"),
        ('{"name": "times", "arguments": {"a": true}}', "times: a must be integer, not true"),
        ('{"name": "times", "arguments": {"a": 6.0}}', "times: a must be integer, not 6.0"),
        ('{"name": "times", "arguments": {"a": 6, "b": 1e999}}', "times: b must be number, not inf"),
        ('{"name": "times", "arguments": {"a": 6, "how": 4}}', "times: how must be one of 'up', 3 or null, not 4"),
        ('{"name": "times", "arguments": {"a": 6, "of": [1, "2"]}}', "times: of must be array, not a list"),
    ],
)
def test_what_is_wrong_with_a_call_is_said_in_one_line(said, words):
    with pytest.raises(ToolError) as caught:
        parsed(said, TIMES)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_true_is_no_number():
    assert fits(3, kind_of(float, "")) and not fits(True, kind_of(float, "")) and fits(True, kind_of(bool, ""))
    assert not fits(1, kind_of(bool, "")) and not fits(True, kind_of(Literal[1], ""))


def test_calls_are_found_and_one_left_open_is_a_call():
    assert calls("a <tool_call>1</tool_call> b <tool_call>\n2\n</tool_call>") == ["1", "2"]
    assert calls("<tool_call>1<tool_call>2</tool_call>") == ["1", "2"] and calls("<tool_call>1") == ["1"] and calls("</tool_call>") == []


def test_results_come_in_order_whoever_is_first():
    first, second = Future(), Future()
    both = gathered([first, second])
    second.set_result(2)
    assert not both.done()
    first.set_result(1)
    assert both.result() == [1, 2]
    assert isinstance(gathered([done(1), future := Future()]), Future) and future.set_exception(LostReply("x")) is None


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Tools that fail in every way, one process each."""
    file = tmp_path_factory.mktemp("tools") / "odd.py"
    file.write_text(TOOLS)
    made = build_environment(f"{file}:make", settings(), WORDS)  # type: ignore[arg-type]
    assert isinstance(made, ToolEnvironment)
    yield made
    made.close()


def replied(environment, *said: str) -> Reply | None:
    future = environment.respond(None, turn("\n".join(said)))
    return None if future is None else future.result(300)


@pytest.mark.parametrize(
    ("said", "text", "failed"),
    [
        (call("spin", seconds=0.01), "spun", False),
        (call("spin", seconds=60), "error: spin takes more than 0.4 CPU seconds", True),
        (call("leave", how="exit"), "error: SystemExit: 3", True),
        (call("leave", how="at once"), "error: leave ends its process", True),
        (call("give", what="text"), "a\n?", False),
        (call("give", what="none"), "null", False),
        (call("give", what="torch"), "false", False),  # its process has not imported it
        (call("give", what="set"), "error: TypeError: Object of type set is not JSON serializable", True),
        (call("give", what="object"), "error: TypeError: Object of type object is not JSON serializable", True),
        (call("give", what="long"), "error: the result has 20000 characters, more than 16384", True),
        (call("give", what="else"), "error: KeyError: 'else'", True),
        (call("give"), "error: give: what is missing", True),
    ],
)
def test_every_call_has_a_reply_and_none_ends_the_run(odd, said, text, failed):
    reply = replied(odd, said)
    assert reply is not None and (reply.text, reply.failed) == (text, failed)


def test_several_calls_are_one_reply_in_their_order(odd):
    slow, fast, wrong = call("spin", seconds=0.1), call("give", what="none"), "<tool_call>{}"
    assert replied(odd, slow, fast, wrong) == Reply(
        text='spun\nnull\nerror: a call must have a name, as {"name": "…", "arguments": {…}}', tool="spin, give, none", failed=True
    )
    many = replied(odd, *[fast] * (MOST_CALLS + 3))
    assert many is not None and many.text == "null\n" * MOST_CALLS + f"error: more than {MOST_CALLS} calls in a turn"


def test_what_is_thought_is_no_call(odd):
    assert replied(odd, f"<think>{call('give', what='none')}</think> So 3.") is None and replied(odd, "So 3.") is None
    assert replied(odd, f"<think>{call('give', what='none')}") is None  # never closed
    assert replied(odd, f"<think>I call it.</think>{call('give', what='none')}") == Reply(text="null", tool="give")


def test_a_call_that_the_machine_kills_is_lost_and_no_fault_of_the_policys(odd):
    """Killed from outside in the middle of it, and again when it is tried once more."""
    future = odd.respond(None, turn(call("leave", how="kill")))
    with pytest.raises(LostReply, match="a call of leave was killed"):
        future.result(300)
    assert replied(odd, call("give", what="none")) == Reply(text="null", tool="give")  # the pool goes on


def test_tools_must_be_found_by_their_name():
    class Inside(ToolEnvironment):
        tools = (lambda a: a,)

    class Twice(ToolEnvironment):
        tools = (times, times)

    with pytest.raises(ValueError, match="tool <lambda> is no function at the top of a module"):
        _ = Inside(settings(), WORDS).schemas  # type: ignore[arg-type, abstract]
    with pytest.raises(ValueError, match="two tools of Twice share a name"):
        _ = Twice(settings(), WORDS).schemas  # type: ignore[arg-type, abstract]


def test_a_path_that_makes_no_environment_is_one_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("make = 3\ndef nothing(config, tokenizer): return config\n")
    for name, kind in (("make", "int"), ("nothing", "SimpleNamespace")):
        with pytest.raises(ValueError, match=rf"mine.py:{name} makes no Environment, but a {kind}; name a class of it, or a function"):
            build_environment(f"{file}:{name}", settings(), WORDS)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="mine.py:other: "):
        build_environment(f"{file}:other", settings(), WORDS)  # type: ignore[arg-type]


# ---- a run -----------------------------------------------------------------------------------------------------------------------------

PIECES = [
    *("<pad>", "<end>", "<?>", "\\boxed{96}", "\n"),
    *(f"<tool_call>{json.dumps(said)}</tool_call>" for said in (
        {"name": "price", "arguments": {"item": "pear"}}, {"name": "times", "arguments": {"a": 2, "b": 48}}, {"name": "cost"},
    )),
]  # fmt: skip
TEMPLATE = "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}\n{% endfor %}"


def write_caller(folder: Path) -> None:
    """A random model whose tokens are whole calls, so that it calls; every other character is <?>."""
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<?>"))
    whole = "|".join("".join("\\" + c if not c.isalnum() else c for c in piece) for piece in PIECES if len(piece) > 1)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(whole.replace("\\ ", " ") + r"|[\s\S]"), behavior="isolated")  # type: ignore[assignment]
    core.decoder = decoders.Fuse()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>", unk_token="<?>")
    made.chat_template = TEMPLATE
    ids = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 1}
    config = AutoConfig.for_model("qwen3", vocab_size=len(PIECES), tie_word_embeddings=False, dtype="float32", **SHAPE | ids)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)
    model.save_pretrained(folder)
    made.save_pretrained(folder)


def test_the_example_trains(torchrun, tmp_path):
    """`--data.train examples/two_tools.py:make`, as its first lines say, with a model of a few thousand parameters."""
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    write_caller(tmp_path / "caller")
    small = ("--rollout.engine", "torch", "--rollout.prompts", 8, "--optim.minibatch-prompts", 8, "--rollout.samples", 4, "--data.test")
    model = (
        "--model.path",
        tmp_path / "caller",
        "--model.dtype",
        "float32",
        "--model.max-length",
        224,
        "--rollout.max-new-tokens",
        60,
        "--rollout.turns",
        4,
        5.0,
    )
    run = ("--warm-start.steps", 0, "--run.steps", 1, "--run.folder", tmp_path, "--run.name", "shop", "--optim.microbatch-tokens", 2048)
    lines = ["smollm2-gsm8k", "--data.train", "examples/two_tools.py:make", *small, *model, *run, "--optim.lr", 1e-3]
    critic = [*lines, "--run.task", "critic", "--run.name", "critic"]
    says = torchrun("runs", 1, runs=[list(map(str, lines)), list(map(str, critic))])
    assert says[0] is None and "run.task critic trains on one turn, but data.train examples/two_tools.py:make answers" in says[1]
    reader = RunReader(tmp_path / "shop")
    steps = [row for row in reader.metrics() if "loss/policy" in row]
    assert [row["mismatch/gate"] < 1.001 and row["mismatch/exp_abs_dlogp"] < 1.001 for row in steps] == [True]
    rows = reader.rollouts(1)
    several = [row for row in rows if row["turns"]]
    replies = [part for row in several for part in row["turns"] if not part["own"]]
    assert len(several) > 8 and {part["text"] for part in replies if part["tool"] == "price"} == {"48"}
    assert {part["text"] for part in replies if part["tool"] == "times"} == {"96"} and any(part["failed"] for part in replies)
    assert steps[0]["turns/mean"] == pytest.approx(1 + len(replies) / len(rows)) and steps[0]["turns/lost"] == 0
    assert steps[0]["turns/tool_failed"] == pytest.approx(sum(part["failed"] for part in replies) / len(replies))
    own = [sum(row["mask"]) if row["mask"] else len(row["tokens"]) for row in rows]
    assert steps[0]["tokens/response"] == pytest.approx(sum(own) / len(rows))
    assert all(logprob == 0 for row in several for logprob, mine in zip(row["logprobs"], row["mask"], strict=True) if not mine)
    # An answer counts in the last turn alone.
    assert all("\\boxed{96}" in (row["turns"] or [{"text": row["text"]}])[-1]["text"] for row in rows if row["outcome"] == "correct")
    assert any("\\boxed{" in row["text"] and row["outcome"] == "no_answer" for row in several)


def test_what_a_tool_says_earns_nothing():
    """A box in a result, or in an earlier turn, is no answer; one in the last turn is."""
    made = build_environment(f"{EXAMPLE}:make", settings(), WORDS)  # type: ignore[arg-type]
    prompt = Prompt(id="a", text="2 pears?", answer="96")
    for last, outcome in (("So.", Outcome.NO_ANSWER), ("\\boxed{95}", Outcome.WRONG), ("\\boxed{96}", Outcome.CORRECT)):
        whole = turn("x")
        whole.mask, whole.tokens, whole.logprobs = np.array([1, 0, 1], np.uint8), np.ones(3, np.int32), np.zeros(3, np.float32)
        said = (Turn(text="\\boxed{96}", own=True), Turn(text="\\boxed{96}", own=False, tool="times"), Turn(text=last, own=True))
        whole.turns, whole.text = said, made.transcript(said)
        found = made.check(prompt, whole)
        assert (found.result() if isinstance(found, Future) else found).outcome is outcome
    made.close()

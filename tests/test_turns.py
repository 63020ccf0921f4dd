"""Rollouts of several turns: token in, token out, whoever replies first; masks from the sampler to the loss and to the disk."""

import queue
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import write_tiny
from transformers import AutoModelForCausalLM

from soundrl.engine import rollouts as module
from soundrl.engine.config import Model
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import Environment, LostReply, answers
from soundrl.engine.exchange import exchange, unpacked
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.files.rollout_file import SCHEMA, RolloutWriter, read_file
from soundrl.engine.files.underway import Underway, read_rollouts
from soundrl.engine.packing import Sample, pack
from soundrl.engine.recipes import RECIPES
from soundrl.engine.rollouts import Rollouts
from soundrl.engine.samplers.sampler import Draw, seed_of_turn
from soundrl.engine.samplers.torch_sampler import TorchSampler
from soundrl.engine.samplers.turns import Turns, joined
from soundrl.fapo.measures import turn_rates, turn_sums
from soundrl.fapo.pending import PendingGroups, done
from soundrl.fapo.records import Group, Outcome, Prompt, Reply, Rollout, Turn
from soundrl.kernels.policy_loss import policy_loss

CPU, END = torch.device("cpu"), 9


class Talks(Environment):
    """Replies by `say(prompt, rollout)`."""

    def __init__(self, say):
        self.respond = say  # type: ignore[method-assign]

    problems = demonstrations = check = None  # type: ignore[assignment]


class Silent(Environment):
    problems = demonstrations = check = None  # type: ignore[assignment]


class Scripted:
    """A sampler of one request at a time: of a request with n tokens in its prompt the turn is n mod 7 and the seed's last digit, then the
    end token; it stops at the limit. Which of the waiting requests is next is drawn by `order`."""

    engine, slots, version, leads = 0, 4, 3, True

    def __init__(self, order: int = 0) -> None:
        self.order, self.seen, self.idle = random.Random(order), list[tuple[int, ...]](), 0

    def of_engine(self, value):
        return value

    def generate(self, requests, leaving=lambda: False, more=lambda idle: None):
        waiting, new = list(requests), []
        while new is not None or waiting:
            waiting += new or []
            if leaving():
                return
            if waiting:
                r = waiting.pop(self.order.randrange(len(waiting)))
                self.seen.append((r.seed, r.max_new_tokens, *r.prompt_tokens.tolist()))
                said = [len(r.prompt_tokens) % 7, r.seed % 9, END][: r.max_new_tokens]
                yield Rollout(
                    prompt_id=r.prompt_id, sample=r.sample, prompt_tokens=r.prompt_tokens, tokens=np.array(said),
                    logprobs=-np.array(said, np.float32) - 1, text=f"says {said[0]}",
                    finish_reason="stop" if said[-1] == END else "length", policy_version=3,
                )  # fmt: skip
            self.idle += not waiting
            new = more(not waiting)


class Letters:
    """A reply's characters as tokens 20, 21, …"""

    def reply(self, reply, ended):
        assert ended == END
        return np.array([20 + ord(c) - ord("a") for c in reply.text], np.int32)


DRAW = Draw(run_seed=1, phase="train", step=1, temperature=1.0, max_new_tokens=20)
PROMPTS = {f"p{i}": Prompt(id=f"p{i}", text=f"{i}", answer="1") for i in range(3)}


def said(sampler, respond, most=8, limit=20, leaving=lambda: False, samples=2) -> dict:
    draw = replace(DRAW, max_new_tokens=limit)
    requests = draw.requests([(id_, np.arange(3 + i)) for i, id_ in enumerate(PROMPTS)], samples)
    turns = Turns(sampler, Letters(), Talks(respond), most)  # type: ignore[arg-type]
    out = list(turns.generate(requests, PROMPTS, leaving))
    assert len({(r.prompt_id, r.sample) for r in out}) == len(out)
    return {(r.prompt_id, r.sample): r for r in out}


def content(rollouts: dict) -> dict:
    arrays = ("tokens", "mask", "logprobs")
    return {key: ([getattr(r, n).tolist() for n in arrays], r.text, r.finish_reason, r.turns) for key, r in sorted(rollouts.items())}


def twice(prompt, rollout):
    """Two replies; sample 1 of p1 none."""
    if (prompt.id, rollout.sample) == ("p1", 1) or len(rollout.turns) >= 5:
        return None
    return Reply(text="ab" if not rollout.turns else "cab", tool="t", failed=not rollout.turns)


def test_a_rollout_is_its_turns_and_what_was_replied():
    sampler = Scripted()
    found = said(sampler, twice)
    seed = DRAW.request("p0", np.arange(3), 1).seed
    seeds = [seed, seed_of_turn(seed, 1), seed_of_turn(seed, 2)]
    assert len(set(seeds)) == 3 and seed_of_turn(seed, 0) == seed  # a run of single turns samples as ever
    rollout = found["p0", 1]
    one, two, three = [3, seeds[0] % 9, END], [8 % 7, seeds[1] % 9, END], [14 % 7, seeds[2] % 9, END]
    assert rollout.tokens.tolist() == [*one, 20, 21, *two, 22, 20, 21, *three] and rollout.prompt_tokens.tolist() == [0, 1, 2]
    assert rollout.mask.tolist() == [1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1] and rollout.answer_start == 11
    assert [turn.text for turn in rollout.turns] == ["says 3", "ab", "says 1", "cab", "says 0"] and rollout.answer_text == "says 0"
    assert [turn.failed for turn in rollout.turns] == [False, True, False, False, False]
    assert rollout.text == "says 3\n\n[tool t] ab\n\nsays 1\n\n[tool t] cab\n\nsays 0"
    assert np.array_equal(rollout.logprobs, np.where(rollout.mask, -rollout.tokens - 1.0, 0.0).astype(np.float32))
    # Token in, token out: each request holds its prompt and all tokens so far, and may sample what is left of the limit.
    asked = [row for row in sampler.seen if row[0] in seeds]
    assert asked == [(seeds[0], 20, 0, 1, 2), (seeds[1], 15, 0, 1, 2, *one, 20, 21), (seeds[2], 9, 0, 1, 2, *one, 20, 21, *two, 22, 20, 21)]
    alone = found["p1", 1]
    assert alone.turns == () and alone.mask.all() and alone.text == "says 4" and alone.answer_start == 0


class Late:
    """Replies come in an order of their own, from another thread; `slow` none before the sampler has nothing else to do."""

    def __init__(self, seed: int, sampler: Scripted, slow: bool) -> None:
        self.order, self.sampler, self.slow = random.Random(seed), sampler, slow
        self.open, self.closed = list[tuple[Future, Reply | None]](), False
        self.lock, self.thread = threading.Lock(), threading.Thread(target=self.answer)
        self.thread.start()

    def __call__(self, prompt, rollout):
        with self.lock:
            self.open.append((future := Future(), twice(prompt, rollout)))
        return future

    def answer(self):
        while not self.closed or self.open:
            if not self.open or (self.slow and not self.sampler.idle):
                time.sleep(0.002)
                continue
            with self.lock:
                future, reply = self.open.pop(self.order.randrange(len(self.open)))
            future.set_result(reply)


@pytest.mark.parametrize(("seed", "slow"), [(1, False), (2, True), (3, True)])
def test_who_replies_first_changes_nothing(seed, slow):
    sampler = Scripted(seed)
    late = Late(seed, sampler, slow)
    try:
        assert content(said(sampler, late)) == content(said(Scripted(), twice))
    finally:
        late.closed = True
        late.thread.join()
    assert not slow or sampler.idle  # witness: the sampler has waited with nothing else to do


@pytest.mark.parametrize(
    ("most", "limit", "reasons", "sizes"),
    [
        (1, 20, {"turns": 5, "stop": 1}, {3}),  # nobody is answered
        (2, 20, {"turns": 5, "stop": 1}, {3, 8}),  # the reply to the last turn that is allowed is not heard
        (8, 5, {"length": 5, "stop": 1}, {3}),  # the reply leaves no room for one more token
        (8, 6, {"length": 5, "stop": 1}, {3, 6}),  # the second turn is cut, and not answered
        (8, 2, {"length": 6}, {2}),
        (3, 14, {"stop": 6}, {3, 14}),
    ],
)
def test_limits_of_turns_and_tokens(most, limit, reasons, sizes):
    found = said(Scripted(), twice, most, limit)
    ends = [rollout.finish_reason for rollout in found.values()]
    assert {reason: ends.count(reason) for reason in set(ends)} == reasons
    assert {len(rollout.tokens) for rollout in found.values()} == sizes
    assert all(rollout.mask[-1] == 1 for rollout in found.values())  # a rollout ends with a turn of the policy


def test_a_lost_reply_ends_its_rollout_alone_and_a_fault_of_the_environment_the_run():
    def lost(prompt, rollout):
        if prompt.id != "p0":
            return twice(prompt, rollout)
        (future := Future()).set_exception(LostReply("killed"))
        return future

    found = said(Scripted(), lost)
    assert {key[0] for key, rollout in found.items() if rollout.finish_reason == "lost"} == {"p0"}
    assert content({k: r for k, r in found.items() if k[0] != "p0"}).items() <= content(said(Scripted(), twice)).items()
    group = Group(prompt=PROMPTS["p0"], rollouts=list(found.values()))
    assert turn_rates(turn_sums([group]) | {"rollouts": 6}) == {
        **{"turns/mean": 1 + 6 / 6, "turns/tool_failed": 3 / 6, "turns/cut": 0.0, "turns/lost": 2 / 6, "tokens/tool": 15 / 6}
    }
    with pytest.raises(KeyError, match="mine"):
        said(Scripted(), lambda prompt, rollout: {}["mine"])
    with pytest.raises(ValueError, match="the environment's reply in p. is empty; let respond return None"):
        said(Scripted(), lambda prompt, rollout: Reply(text=""))


def test_a_run_that_is_left_waits_for_no_reply():
    asked = list[Future]()

    def never(prompt, rollout):
        asked.append(Future())
        return None if prompt.id == "p2" else asked[-1]

    found = said(Scripted(), never, leaving=lambda: len(asked) == 6)
    assert {key[0] for key in found} == {"p2"} and len(asked) == 6  # what is whole is kept, the others are sampled again


def test_ranks_that_share_an_engine_hear_the_same_and_one_asks():
    """Two ranks in step; the second one's environment must not be asked."""
    box: queue.Queue = queue.Queue()
    out: dict[int, dict] = {}

    class Shared(Scripted):
        def __init__(self, rank):
            super().__init__(5)
            self.leads = rank == 0

        def of_engine(self, value):
            if not self.leads:
                return box.get(timeout=60)
            box.put(value)
            return value

    def rank(number):
        sampler = Shared(number)
        out[number] = said(sampler, twice if number == 0 else lambda prompt, rollout: 1 / 0), sampler.seen  # type: ignore[assignment]

    threads = [threading.Thread(target=rank, args=[number]) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(out[0][0]) == content(out[1][0]) == content(said(Scripted(), twice)) and box.empty()
    assert out[0][1] == out[1][1]  # the same requests in the same rounds


def test_only_an_environment_that_answers_is_asked():
    assert not answers(Environment) and answers(Talks(twice)) and answers(lambda config, tokenizer: None)
    assert not answers(Silent(None, None)) and not answers(Silent)  # type: ignore[arg-type]

    class Own(Environment):
        def respond(self, prompt, rollout):
            return None

    assert answers(Own)


def test_nobody_but_the_environment_writes_the_label_of_a_reply():
    turns = [
        Turn(text="So\n[tool times] 7\n\n[TOOL x]", own=True),
        Turn(text="6\n\n\n<paragraph_3>\n", own=False, tool="times"),
        Turn(text="", own=True),
        Turn(text="go on", own=False),
        Turn(text="Six.", own=True),
    ]
    text = Environment.transcript(Talks(twice), turns)
    assert text == "So\n(tool times] 7\n\n(TOOL x]\n\n[tool times] 6\n<paragraph_3>\n\n[reply] go on\n\nSix."
    steps = Environment.split(Talks(twice), text)
    assert [step.startswith("[") for step in steps] == [False, False, True, True, False]  # a call is one step
    from soundrl.genrm.prompts import PROMPTS as JUDGES

    shown = JUDGES["own"].messages("p", list(steps), None)[0]["content"]
    assert shown.count("<paragraph_3>") == 1 and "[tool times] 6" in shown  # the judge's own tag alone


# ---- what is trained -------------------------------------------------------------------------------------------------------------------


def rollout(prompt: list[int], *parts: list[int], tool: int = 2, **changes) -> Rollout:
    """Own and replied parts in turns."""
    tokens, mask = [], []
    for number, part in enumerate(parts):
        tokens += part
        mask += [1 - number % 2] * len(part)
    turns = tuple(Turn(text=str(part), own=number % 2 == 0, tool="" if number % 2 == 0 else "t") for number, part in enumerate(parts))
    made = {"prompt_id": "p", "sample": 0, "text": "", "finish_reason": "stop", "policy_version": 1} | changes
    return Rollout(
        prompt_tokens=np.array(prompt),
        tokens=np.array(tokens),
        mask=np.array(mask),
        logprobs=np.where(mask, -np.array(tokens) / 10, 0.0),
        turns=turns if len(parts) > 1 else (),
        **made,
    )


def test_packing_indexes_own_tokens_alone():
    samples = [Sample.of(rollout([5, 6], [7])), Sample.of(rollout([8], [9], [2, 3], [4]))]
    assert samples[0].mask is None and [sample.own for sample in samples] == [1, 2]
    batch = pack([replace(s, advantage=a, old_logprobs=s.logprobs - 1) for s, a in zip(samples, (1.0, -2.0), strict=True)], CPU)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 2, 3, 4] and batch.cu_seqlens.tolist() == [0, 3, 8]
    assert batch.loss_mask.tolist() == [False, False, True, False, True, False, False, True]
    assert batch.response_index.tolist() == [2, 4, 7] and batch.response_cu_seqlens.tolist() == [0, 1, 3]
    assert batch.advantages.tolist() == [0, 0, 1, 0, -2, 0, 0, -2]
    assert torch.equal(batch.sampler_logprobs, torch.tensor([0, 0, -0.7, 0, -0.9, 0, 0, -0.4]))
    assert batch.old_logprobs is not None and torch.allclose(batch.old_logprobs, torch.tensor([0, 0, -1.7, 0, -1.9, 0, 0, -1.4]))


def test_what_a_tool_has_said_is_in_no_term_of_the_loss():
    """Another text of the same length, with the policy's own log-probabilities as they were: the same bits, and no gradient but theirs."""
    terms = []
    for reply in ([2, 3], [13, 1]):
        sample = replace(Sample.of(rollout([8], [9, 5], reply, [4])), advantage=0.7)
        batch = pack([sample], CPU)
        own = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
        index = batch.response_index
        loss, metrics = policy_loss(own, None, batch.advantages[index], batch.sampler_logprobs[index], 3.0)[:2]
        loss.backward()
        assert own.grad is not None and (own.grad != 0).all() and len(own.grad) == sample.own == 3
        terms.append((loss.item(), own.grad.tolist(), {name: value.item() for name, value in metrics.items()}))
    assert terms[0] == terms[1]


class Board:
    """`gather_array` of ranks that come one after the other."""

    def __init__(self) -> None:
        self.said: list[list[np.ndarray]] = []

    def of(self, rank):
        def gather_array(own):
            self.said[rank].append(own)
            return [own]

        self.said.append([])
        return SimpleNamespace(rank=rank, size=1, gather_array=gather_array)


def test_every_rank_learns_the_masks():
    one, two = rollout([8], [9], [2, 3], [4]), rollout([8], [9, 9], sample=1)
    pending = PendingGroups([PROMPTS["p0"]], lambda groups: [setattr(g, "advantages", [1.0, -1.0]) for g in groups] and None, False)
    for r in (one, two):
        pending.by_prompt["p0"].add(replace(r, prompt_id="p0"), done(Outcome.WRONG), done(None))
    board = Board()
    batch = exchange([PROMPTS["p0"]], pending, board.of(0))  # type: ignore[arg-type]
    assert [s.mask is None or s.mask.tolist() for s in batch.samples] == [[1, 0, 0, 1], True]
    assert [np.round(s.logprobs.astype(float), 3).tolist() for s in batch.samples]  # type: ignore[union-attr] == [[-0.9, -0.4], [-0.9, -0.9]]
    assert batch.samples[0].mask is not None and batch.samples[0].mask.dtype == np.uint8
    ((_, again, _, _),) = unpacked(*board.said[0])
    assert [s.tokens.tolist() for s in again] == [[9, 2, 3, 4], [9, 9]] and batch.live([0]) == [0, 1]  # type: ignore[union-attr]


def test_turns_and_masks_read_back_and_older_files_still_open(tmp_path):
    file = tmp_path / "1-rank-0.arrows"
    several, one = rollout([8], [9], [2, 3], [4]), rollout([8], [9, 9], sample=1)
    group = Group(prompt=Prompt(id="p", text="p", answer="a"), rollouts=[several, one])
    with RolloutWriter(file) as writer:
        writer.add([group])
    rows = read_file(file)[0].to_pylist()
    assert [row["mask"] for row in rows] == [[1, 0, 0, 1], None] and rows[1]["turns"] is None
    assert rows[0]["turns"][1] == {"own": False, "tool": "t", "failed": False, "text": "[2, 3]"}
    back = [r for r, _ in read_rollouts(file, {"p": (group.prompt, several.prompt_tokens)})]
    for made, found in zip(group.rollouts, back, strict=True):
        assert found.turns == made.turns and np.array_equal(found.mask, made.mask) and found.mask.dtype == np.uint8
        assert np.array_equal(found.logprobs, made.logprobs) and found.answer_text == made.answer_text
    import pyarrow as pa

    old = pa.schema([field for field in SCHEMA if field.name not in ("mask", "turns")])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, old) as stream:
        stream.write_batch(pa.RecordBatch.from_pylist([{name: rows[1][name] for name in old.names}], schema=old))
    ((found, _),) = list(read_rollouts(file, {"p": (group.prompt, several.prompt_tokens)}))
    assert found.mask.all() and found.turns == () and found.tokens.tolist() == [9, 9]


# ---- a real model ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "qwen3")


@pytest.mark.parametrize("strips", [False, True])
def test_log_probabilities_of_every_turn_are_the_models_of_the_whole_sequence(model, strips):
    """The sampler's, of each own token, against one pass over all tokens; a template that trims what it renders breaks nothing, as what the
    policy has written is not rendered. Tokens are the same whether replies come at once or later."""
    tokenizer = load_tokenizer(model)
    if strips:
        tokenizer.chat_template = "{% for m in messages %}{{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}#{% endif %}"
    ranks = SimpleNamespace(device=CPU, rank=0)
    sampler = TorchSampler(model, tokenizer, Model(path=str(model), dtype="float32"), ranks)  # type: ignore[arg-type]
    environment = Talks(lambda prompt, rollout: None if len(rollout.turns) >= 5 else Reply(text="6*7=\n42"[rollout.sample :], tool="t"))
    draw = replace(DRAW, temperature=0.8, max_new_tokens=60)
    requests = draw.requests([(id_, np.array([7, 1, 10, 2, 14][i:])) for i, id_ in enumerate(PROMPTS)], 6)
    encode = Encoder(tokenizer, 100)
    found = list(Turns(sampler, encode, environment, 8).generate(requests, PROMPTS, lambda: False))  # type: ignore[arg-type]
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    several = [rollout for rollout in found if rollout.turns]
    assert len(found) == 18 and len(several) >= 3 and max(len(rollout.turns) for rollout in several) >= 3
    for rollout in found:
        logits = reference(torch.tensor([[*rollout.prompt_tokens, *rollout.tokens]])).logits[0]
        log_p = torch.log_softmax(logits / 0.8, -1)[len(rollout.prompt_tokens) - 1 : -1]
        expected = log_p.gather(1, torch.tensor(rollout.tokens).long()[:, None])[:, 0].detach().numpy()
        own = rollout.mask == 1
        assert np.abs(rollout.logprobs - expected)[own].max() < 1e-4 and not rollout.logprobs[~own].any()
        texts = [turn.text for turn in rollout.turns if not turn.own]
        assert sum(len(encode.reply(Reply(text=text), rollout.tokens[-1])) for text in texts) == (~own).sum()


def test_joined_keeps_the_tokens_of_both_turns():
    first, second = rollout([8], [5, 6]), rollout([8, 5, 6, 8, 8], [7], finish_reason="length")
    whole = joined(first, Reply(text="88", tool="t", failed=True), np.array([8, 8]), second)
    assert whole.tokens.tolist() == [5, 6, 8, 8, 7] and whole.mask.tolist() == [1, 1, 0, 0, 1] and whole.finish_reason == "length"
    assert whole.prompt_tokens.tolist() == [8] and [turn.own for turn in whole.turns] == [True, False, True]


class Asked(Letters):
    def __call__(self, prompt):
        return np.arange(3 + int(prompt.text))


def collected(prompts, rollouts, beside, into) -> PendingGroups:
    assert into is None
    pending = PendingGroups(prompts, lambda groups: None, decisive=False)
    for found in rollouts:
        pending.by_prompt[found.prompt_id].add(found, done(Outcome.WRONG), done(None))
    return pending


@pytest.mark.parametrize("whole", [2, 4])
def test_a_start_after_a_kill_samples_what_was_not_whole_and_all_is_as_without_it(tmp_path, monkeypatch, whole):
    """Half-done rollouts are sampled anew, from their first turn; whole ones come back with their turns."""
    config = RECIPES["arith"]()
    config = replace(config, rollout=replace(config.rollout, samples=2, max_new_tokens=20), run=replace(config.run, seed=1))
    ranks = SimpleNamespace(rank=0, size=1)

    def sampled(folder: Path, start: int) -> tuple[dict, Scripted]:
        sampler, underway = Scripted(start), Underway(folder, ranks, start)  # type: ignore[arg-type]
        task = SimpleNamespace(collect=collected)
        rollouts = Rollouts(task, sampler, Asked(), config, underway, Talks(twice))  # type: ignore[arg-type]
        pending = rollouts(list(PROMPTS.values()), 1)
        underway.flush()
        return {(r.prompt_id, r.sample): r for group in pending for r in group.rollouts}, sampler

    uninterrupted, _ = sampled(tmp_path / "whole", 0)
    assert len(uninterrupted) == 6 and content(uninterrupted) == content(said(Scripted(), twice))
    done_ = list[Rollout]()
    monkeypatch.setattr(module, "leaving", lambda: len(done_) >= whole)
    add = Underway.add
    monkeypatch.setattr(Underway, "add", lambda self, rollout: (done_.append(rollout), add(self, rollout))[1])
    first, before = sampled(tmp_path / "killed", 1)
    assert len(first) == whole and len(before.seen) > sum(len(r.turns) // 2 + 1 for r in first.values())  # witness: some were half done
    monkeypatch.setattr(module, "leaving", lambda: False)
    second, after = sampled(tmp_path / "killed", 2)
    assert content(second) == content(uninterrupted)
    again = {seed for seed, *_ in after.seen}
    assert not again & {DRAW.request(id_, np.arange(3), sample).seed for id_, sample in first}  # not sampled again

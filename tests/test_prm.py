"""A process reward model as a judge: scores of plain transformers, through the protocol of every judge."""

import asyncio
import contextlib
import json
import threading
from pathlib import Path

import pytest
import torch
from aiohttp import web
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from soundrl.fapo.records import Verdict
from soundrl.genrm import evaluate
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.serve.prm import PrmServer, Scorer, Scoring, TooLongError
from soundrl.genrm.verdict import HTTP_4XX, NO_BOX

ALPHABET = "abcdefghijklmnopqrstuvwxyz 0123456789+=.?!#\n"
WIDTH = 16


def tokenizer(mark: str = "") -> PreTrainedTokenizerFast:
    """A token a character, and one for `mark`."""
    tokens = ["<pad>", "<s>", *ALPHABET, *([mark] if mark else [])]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    pieces = f"{mark}|[\\s\\S]" if mark else "[\\s\\S]"
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")  # type: ignore[assignment]
    made.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>")


def config(tokens: int, **more) -> LlamaConfig:
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 8}
    return LlamaConfig(vocab_size=tokens, pad_token_id=0, bos_token_id=1, max_position_embeddings=512, **shape, **more)


def sees(model: torch.nn.Module, character: str, words: PreTrainedTokenizerFast) -> None:
    """Every place takes the mean of all tokens before it (no query, no key), of which `character` alone has a part in the first dimension;
    the head finds that part: from the first step that holds the character on, steps are wrong."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.zero_()
            if "norm" in name:
                tensor.fill_(1.0)
            if name.endswith(("v_proj.weight", "o_proj.weight")):
                tensor.copy_(torch.eye(WIDTH))
            if name.endswith("embed_tokens.weight"):
                tensor[:, 1] = 1.0
                tensor[words.get_vocab()[character], 0] = 50.0
        head = [tensor for name, tensor in model.named_parameters() if name.startswith("score") and name.endswith("weight")][-1]
        head[0, 0], head[-1, 1] = 400.0, 1.0  # of the last label against the first


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Calls a step wrong that holds `!`."""
    words = tokenizer()
    model = LlamaForTokenClassification(config(len(words), num_labels=2))
    sees(model, "!", words)
    model.save_pretrained(tmp_path / "prm")
    words.save_pretrained(tmp_path / "prm")
    return tmp_path / "prm"


@contextlib.contextmanager
def served(settings: Scoring, token: str = "secret"):
    """The server in a thread of its own; yields its URL."""
    server, loop, ready = PrmServer(Scorer(settings), token), asyncio.new_event_loop(), threading.Event()
    urls: list[str] = []

    async def start() -> None:
        runner = web.AppRunner(server.app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        working = asyncio.ensure_future(server.work())
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(start(),), daemon=True)
    thread.start()
    assert ready.wait(120)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(60)


STEPS = ["so 1+1=2.", "then 2+2=5!", "so 4 and 5.", "ok!"]


def test_it_judges_by_the_first_step_below_the_threshold_as_plain_transformers_does(folder, monkeypatch):
    monkeypatch.setenv("SOUNDRL_GENRM_TOKEN", "secret")
    words, model = tokenizer(), AutoModelForTokenClassification.from_pretrained(folder)
    with served(Scoring(model=folder, device="cpu", batch=4)) as url, EndpointJudge(url, "prm") as judge:
        judge.check()
        asked = {at: judge.critique("what is 1+1?", STEPS[:at], "2") for at in range(1, 5)}  # the first alone is right
        verdicts = {at: future.result(120) for at, future in asked.items()}
        assert verdicts == {1: Verdict.sound(), **{at: Verdict.flawed(1) for at in (2, 3, 4)}}
        ids = torch.tensor([[1, *words.encode("what is 1+1?\n" + "\n".join(STEPS) + "\n", add_special_tokens=False)]])
        right = model(ids).logits.softmax(-1)[0, :, 1]
        ends = [at for at in range(len("what is 1+1?\n") + 1, ids.shape[1]) if words.decode(ids[0, at]) == "\n"]
        assert len(ends) == 4
        said = verdicts[4].critique.partition("\n")[0].removeprefix("P(right) by paragraph: ").split()
        assert [float(score) for score in said] == pytest.approx(right[ends].tolist(), abs=6e-4)
        assert judge.critique("p", ["a" * 600], None).result(120) == Verdict.unknown(HTTP_4XX)  # longer than its positions
        stats = judge.stats()
        assert stats["submitted"] == 5 and stats["unknown"] == {HTTP_4XX: 1}


@pytest.mark.parametrize("prompt", ["own", "paper", "order", "outcome", "own-read"])
def test_it_takes_every_prompt_that_tags_paragraphs_and_has_no_verdict_for_others(folder, monkeypatch, prompt):
    monkeypatch.setenv("SOUNDRL_GENRM_TOKEN", "secret")
    none = {"outcome": Verdict.unknown(NO_BOX), "own-read": Verdict.unknown(HTTP_4XX)}
    with served(Scoring(model=folder, device="cpu")) as url, EndpointJudge(url, "prm", prompt=prompt) as judge:
        judge.check()
        for reference in (None, "2"):
            assert judge.critique("what?", STEPS, reference).result(120) == none.get(prompt, Verdict.flawed(1))


def test_it_is_evaluated_as_any_judge(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDRL_GENRM_TOKEN", "secret")
    rows = [
        {"id": f"{i}", "problem": f"what {i}?", "steps": steps, "final_answer_correct": True, "label": label}
        for i, (steps, label) in enumerate([(STEPS, 1), (STEPS[:1], -1), (["no!", "x"], 0), (["a", "b", "c!"], 2), (["fine"], -1)])
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with served(Scoring(model=folder, device="cpu")) as url:
        scores = evaluate.main(evaluate.Arguments(data=(str(tmp_path / "rows.json"),), urls=(url,), model="prm", out=tmp_path / "out"))
    assert scores["all"]["f1"]["value"] == scores["all"]["flawed_f1"]["value"] == scores["all"]["coverage"]["value"] == 1.0


def test_nobody_is_answered_without_the_token(folder, monkeypatch):
    with served(Scoring(model=folder, device="cpu"), token="another") as url:
        monkeypatch.setenv("SOUNDRL_GENRM_TOKEN", "secret")
        with EndpointJudge(url, "prm") as judge, pytest.raises(ValueError, match="HTTP 401: the token was refused"):
            judge.check()


def reward_folder(into: Path, labels: int, deep: bool) -> tuple[Path, PreTrainedTokenizerFast]:
    """A sequence classifier's weights, whose head is `score` or, as in Qwen2.5-Math-PRM, two layers with ReLU between them; that one's
    architecture is code of the folder's own, which is never run."""
    torch.manual_seed(0)
    words = tokenizer("<extra_0>" if deep else "")
    LlamaForSequenceClassification(config(len(words), num_labels=labels)).save_pretrained(into)
    words.save_pretrained(into)
    if deep:
        tensors = {name: tensor for name, tensor in load_file(into / "model.safetensors").items() if not name.startswith("score")}
        tensors |= {"score.0.weight": torch.randn(WIDTH, WIDTH), "score.0.bias": torch.randn(WIDTH)}
        tensors |= {"score.2.weight": torch.randn(labels, WIDTH), "score.2.bias": torch.randn(labels)}
        save_file(tensors, into / "model.safetensors", {"format": "pt"})
        said = json.loads((into / "config.json").read_text())
        said |= {"architectures": ["LlamaForProcessRewardModel"], "auto_map": {"AutoModel": "modeling_prm.LlamaForProcessRewardModel"}}
        (into / "config.json").write_text(json.dumps(said))
        (into / "modeling_prm.py").write_text("raise SystemExit('code of the folder was run')\n")
    return into, words


@pytest.mark.parametrize(("labels", "deep"), [(1, False), (2, False), (2, True), (1, True)])
def test_reward_folders_are_read_by_their_head_on_every_token(tmp_path, labels, deep):
    folder, words = reward_folder(tmp_path / "rm", labels, deep)
    scorer = Scorer(Scoring(model=folder, device="cpu"))
    solutions = [scorer.encode("what?", steps) for steps in (["a", "bb"], ["c. d\ne"], STEPS)]
    mark = words.get_vocab()["<extra_0>" if deep else "\n"]
    assert all(ids[0] == 1 and [ids[end] for end in ends] == [mark] * len(ends) for ids, ends in solutions)
    tensors, backbone = load_file(folder / "model.safetensors"), LlamaForCausalLM(config(len(words))).model
    backbone.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    for (ids, ends), found in zip(solutions, scorer(solutions), strict=True):
        hidden = backbone(torch.tensor([ids])).last_hidden_state[0, ends]
        if deep:
            hidden = (hidden @ tensors["score.0.weight"].T + tensors["score.0.bias"]).relu()
            logits = hidden @ tensors["score.2.weight"].T + tensors["score.2.bias"]
        else:
            logits = hidden @ tensors["score.weight"].T
        right = logits[:, 0].sigmoid() if labels == 1 else logits.softmax(-1)[:, 1]
        assert found == pytest.approx(right.tolist(), abs=1e-6)
    with pytest.raises(TooLongError, match="tokens, of 512 that the model takes"):
        scorer.encode("what?", ["a" * 512])


def test_what_has_no_head_per_token_is_refused(tmp_path, folder):
    words = tokenizer()
    bert = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    made = {"writes": LlamaForCausalLM(config(len(words))), "pools": BertForSequenceClassification(bert)}
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="has no head per token .* it scores no steps"):
            Scorer(Scoring(model=tmp_path / name, device="cpu"))
    # A head that its configuration names and its weights lack would be made up at random by the library.
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if not name.startswith("score")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 2 tensors .first: score.bias., a head among them"):
        Scorer(Scoring(model=folder, device="cpu"))
    with pytest.raises(ValueError, match="is no model folder"):
        Scoring(model=tmp_path / "none")
    with pytest.raises(ValueError, match="--good 2 is no label of the 2"):
        Scorer(Scoring(model=reward_folder(tmp_path / "rm", 2, False)[0], device="cpu", good=2))

r"""A process reward model (PRM) as a judge: it writes nothing, it scores each step, and the first score below a threshold is the flaw.

    python -m soundrl.genrm.serve.prm --model models/Qwen2.5-Math-PRM-7B

It speaks the protocol of every judge, so that pool, deadlines, evaluation and runs are as ever: it takes problem and paragraphs out of the
judge's prompt (any that tags its paragraphs; a reference answer is not shown to it) and answers its scores and `\boxed{index}`.

What it takes for a model is a folder with a head per token, read without any code of the folder's own: a token classifier of transformers'
(TRL's PRMs), or a backbone with a `score` head of one or more linear layers with ReLU between them (Qwen2.5-Math-PRM, reward models made as
sequence classifiers, whose head is applied to every token).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from aiohttp import web
from safetensors import safe_open
from torch import Tensor, nn

from soundrl.genrm.evaluate import command
from soundrl.genrm.pool.address import own_host
from soundrl.genrm.prompts import taken_apart
from soundrl.genrm.serve.machine import positions, reserve_port
from soundrl.genrm.serve.servers import TOKEN_ENV, keep_token, own_token

MAX_BODY = 16 * 2**20  # bytes of a question
MARKS = ("<extra_0>",)
"""Tokens that PRMs have been trained to be asked at (Qwen2.5-Math-PRM)."""

log = logging.getLogger(__name__)
Steps = tuple[str, Sequence[str]]  # the problem, the paragraphs


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a PRM is served."""

    model: Path
    """Model folder (safetensors; no code of its own is run)."""
    name: str = "prm"
    """Its name on the wire."""
    threshold: float = 0.5
    """The first step whose probability of being right is below it is the flaw."""
    separator: str = ""
    """Follows each step, and is where it is scored; empty = the mark that the tokenizer has for it (<extra_0>), else a line end."""
    good: int = 1
    """The label of a right step, of a head with several; a single one is the logit of being right."""
    batch: int = 8
    """Solutions scored at once."""
    device: str = ""
    """Where it computes: cpu, cuda, cuda:1 …; empty = a GPU where there is one."""
    dtype: str = "auto"
    """Type of the weights: auto, bfloat16 or float32."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs a token in $SOUNDRL_GENRM_TOKEN."""
    port: int = 0
    """0 = a free one."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.batch < 1 or self.good < 0:
            raise ValueError(f"--threshold {self.threshold} must be between 0 and 1, --batch {self.batch} at least 1, --good at least 0")
        if not (self.model / "config.json").is_file():
            raise ValueError(f"--model {self.model} is no model folder (it has no config.json)")


class TooLongError(ValueError):
    """A solution with more tokens than the model takes."""


class Scorer:
    """Probabilities of being right, a step each. ValueError for a folder that has no head per token."""

    def __init__(self, settings: Scoring) -> None:
        from transformers import AutoTokenizer

        self.settings = settings
        self.device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False, local_files_only=True)
        self.logits, labels = per_token(settings.model, settings.dtype, self.device)
        if labels > 1 and settings.good >= labels:
            raise ValueError(f"--good {settings.good} is no label of the {labels} of {settings.model}; name the one of a right step")
        known = self.tokenizer.get_vocab()
        separator = settings.separator or next((mark for mark in MARKS if mark in known), "\n")
        self.separator = self._ids(separator)
        if not self.separator:
            raise ValueError(f"--separator {separator!r} is no token of {settings.model}; name a text that it is asked at")
        self.longest = positions(settings.model)
        self.begin = [id for id in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) if id is not None][:1]

    def encode(self, problem: str, paragraphs: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids, and the place at which each step is scored: the last token of what follows it. Raises `TooLongError`."""
        if self.tokenizer.chat_template:
            asked = [{"role": "user", "content": problem}]
            ids = self._ids(self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        else:
            ids = self.begin + self._ids(problem + "\n")
        ends = []
        for paragraph in paragraphs:
            ids = [*ids, *self._ids(paragraph), *self.separator]
            ends.append(len(ids) - 1)
        if 0 < self.longest < len(ids):
            raise TooLongError(f"{len(ids)} tokens, of {self.longest} that the model takes")
        return ids, ends

    @torch.inference_mode()
    def __call__(self, solutions: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Of solutions as `encode` gives them, in one padded batch."""
        length = max(len(ids) for ids, _ in solutions)
        padded = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in solutions], device=self.device)
        mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in solutions], device=self.device)
        logits_BTL = self.logits(padded, mask).float()
        right_BT = logits_BTL[..., 0].sigmoid() if logits_BTL.shape[-1] == 1 else logits_BTL.softmax(-1)[..., self.settings.good]
        return [right_BT[row, ends].tolist() for row, (_, ends) in enumerate(solutions)]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def per_token(folder: Path, dtype: str, device: torch.device) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    """(ids [B, T], mask [B, T]) → logits [B, T, L] of a folder's head, and L."""
    from transformers import AutoModel, AutoModelForTokenClassification

    asked = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    classifies = asked[0].endswith("ForTokenClassification")
    made: Any = AutoModelForTokenClassification if classifies else AutoModel
    try:
        how = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        model, info = made.from_pretrained(folder, output_loading_info=True, **how)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model {folder} cannot be loaded ({' '.join(str(error).split())[:200]}); name a safetensors folder") from None
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"--model {folder} lacks {len(missing)} tensors (first: {missing[0]}), a head among them: it scores no steps")
    model = model.to(device).eval()
    if classifies:
        return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits, model.num_labels
    head = score_head(folder, model.config.hidden_size).to(device, model.dtype)
    labels = cast(nn.Linear, head[-1]).out_features
    return lambda ids, mask: head(model(input_ids=ids, attention_mask=mask).last_hidden_state), labels


def score_head(folder: Path, width: int) -> nn.Sequential:
    """The linear layers `score` or `score.N` of the folder, in their order, with ReLU between them. ValueError where there is none that
    takes hidden states of `width`."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as reader:
            tensors |= {name: reader.get_tensor(name) for name in reader.keys() if name.startswith("score.")}
    names = [name.removesuffix("weight") for name in tensors if name.endswith(".weight") and tensors[name].ndim == 2]
    layers: list[nn.Module] = []
    for name in sorted(names, key=lambda name: int("0" + "".join(filter(str.isdigit, name)))):
        weight, bias = tensors.pop(f"{name}weight"), tensors.pop(f"{name}bias", None)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        linear.weight.data = weight
        if bias is not None:
            linear.bias.data = bias
        layers += [*([nn.ReLU()] if layers else []), linear]
    if not layers or tensors or cast(nn.Linear, layers[0]).in_features != width:
        raise ValueError(
            f"--model {folder} has no head per token (a token classifier, or linear layers called score over {width} hidden values): it "
            "scores no steps; serve a GenRM by python -m soundrl.genrm.serve"
        )
    return nn.Sequential(*layers)


class PrmServer:
    """Questions become batches in the order in which they come; one batch is computed at a time, in a thread."""

    def __init__(self, scorer: Scorer, token: str) -> None:
        self.scorer, self.settings = scorer, scorer.settings
        self.expected = f"Bearer {token}".encode()
        self.waiting: asyncio.Queue[tuple[tuple[list[int], list[int]], asyncio.Future[list[float]]]] = asyncio.Queue()
        self.app = web.Application(middlewares=[self._guarded], client_max_size=MAX_BODY)
        self.app.router.add_get("/v1/models", self._models)
        self.app.router.add_post("/v1/chat/completions", self._chat)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if not hmac.compare_digest(request.headers.get("authorization", "").encode("utf-8", "replace"), self.expected):
            raise web.HTTPUnauthorized
        return await handler(request)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.settings.name, "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.Response:
        try:
            match json.loads(await request.read()):
                case {"model": self.settings.name, "messages": [{"role": "user", "content": str(content)}]}:
                    pass
                case _:
                    return refusal(f"one message of the user to the model {self.settings.name} is expected; nothing is written here")
            said, tokens = await self._verdict(content)
        except (ValueError, RecursionError) as error:
            return refusal(str(error)[:200])
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return web.json_response({"object": "chat.completion", "model": self.settings.name, "choices": [choice], "usage": usage})

    async def _verdict(self, content: str) -> tuple[str, int]:
        """What is answered to a prompt, and its tokens. A text that is no judge's prompt, such as a trial of health, has no verdict."""
        parts = taken_apart(content)
        if parts is None:
            return "no solution with tagged paragraphs", 0
        problem, paragraphs, _ = parts
        solution = self.scorer.encode(problem, paragraphs)
        scores: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((solution, scores))
        right = await scores
        flaw = next((step for step, score in enumerate(right) if score < self.settings.threshold), -1)
        return f"P(right) by paragraph: {' '.join(f'{score:.3f}' for score in right)}\n\n\\boxed{{{flaw}}}", len(solution[0])

    async def work(self) -> None:
        """Until it is cancelled."""
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.settings.batch and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            try:
                scores: list[Any] = await asyncio.to_thread(self.scorer, [solution for solution, _ in batch])
            except RuntimeError as error:  # torch's: of memory, of an index; a 500 each, which is tried elsewhere and counted
                log.exception("%d solutions were not scored", len(batch))
                scores = [error] * len(batch)
            for (_, future), score in zip(batch, scores, strict=True):
                if not future.done():
                    future.set_exception(score) if isinstance(score, RuntimeError) else future.set_result(score)


def refusal(why: str) -> web.Response:
    return web.json_response({"error": {"message": why, "type": "BadRequestError"}}, status=400)


async def serve(settings: Scoring) -> None:
    """Until a signal comes; says how to ask, and where a drawn token is kept."""
    drawn = not os.environ.get(TOKEN_ENV, "").strip()
    token = own_token(settings.host)
    server, held = PrmServer(Scorer(settings), token), reserve_port(settings.host, settings.port)
    runner = web.AppRunner(server.app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, held).start()
    working, ended = asyncio.ensure_future(server.work()), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if drawn:
        keep_token(Path(tempfile.mkdtemp(prefix="prm-")), token)
    host = own_host(settings.host) or settings.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{held.getsockname()[1]}/v1"
    print(f"--genrm.urls {url} --genrm.model {settings.name}", flush=True)
    await asyncio.wait({working, asyncio.ensure_future(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
    await runner.cleanup()
    if working.done():
        working.result()  # raises
    working.cancel()


def main(settings: Scoring) -> None:
    asyncio.run(serve(settings))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    command(main, Scoring)

"""A model behind OpenAI-compatible endpoints: chat messages go in, texts come out; who answers has template and tokenizer.

Where the requests go and what happens when they fail is `genrm/pool/scorer.py`, as with a judge. A request that fails in the end is a
rollout without text that ended as `error <reason>`: it counts as wrong, is counted apart, and is asked again by the same command.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import answers
from soundrl.engine.evaluation.protocol import LONGEST
from soundrl.engine.evaluation.sets import ProblemSet
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.samplers.sampler import Request
from soundrl.fapo.records import Prompt, Rollout
from soundrl.genrm.pool.endpoint import Endpoint, Failure
from soundrl.genrm.pool.scorer import ScorerPool
from soundrl.genrm.verdict import HTTP_4XX, TIMEOUT, Reply

TOKEN_ENV = "SOUNDRL_MODEL_TOKEN"
ERROR = "error "
"""How the finish reason of a rollout begins that no server has given."""
HOPELESS = 256
"""Failures in a row, with no reply between them, after which the evaluation stops: the rest would fail as well."""
ATTEMPTS = 4


class Asked(Endpoint):
    """An endpoint of chat, and of plain completions for prompts that are no messages."""

    plain = False
    """Nothing but plain prompts is asked, so that a trial is one as well: a base model has no chat template."""

    async def complete(self, body: bytes, what: str = "") -> Reply:
        return await super().complete(body, what or ("chat/completions" if "messages" in json.loads(body) else "completions"))

    async def probe(self) -> None:
        if not self.plain:
            await super().probe()
            return
        await self.complete(json.dumps({"model": self.model, "prompt": "1+1=", "max_tokens": 1, "temperature": 0}).encode())


class Tokenless:
    """Stands where a verifier asks the policy's tokenizer for its marks of thinking: a text from elsewhere has them, if any, as text."""

    all_special_tokens = ()
    added_tokens_decoder: Mapping[int, Any] = {}

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return ""


class Served:
    """`model` as the endpoints list it under /models. ValueError for an address or a number that cannot work."""

    remote, part, tokenizer, context = True, 1, Tokenless(), 0

    def __init__(
        self, urls: Sequence[str], model: str, *, concurrency: int, deadline: float, extra: Mapping[str, Any], allow_http: bool
    ) -> None:
        self.model, self.deadline, self.extra = model, deadline, dict(extra)
        if not (concurrency >= 1 and deadline > 0):
            raise ValueError(f"--concurrency {concurrency} --deadline {deadline:g}: use at least 1 request, and seconds above 0")
        try:
            self.endpoints = [Asked(url, model, token_env=TOKEN_ENV, allow_http=allow_http) for url in urls]
            self.pool = ScorerPool(self.endpoints, concurrency=concurrency, attempts=ATTEMPTS)
        except ValueError as error:
            raise of_model(error) from None
        self.at_once = 2 * concurrency * len(urls)
        self.tells_ids = False
        """Whether they all give token ids"""
        self.come: list[Rollout] = []
        """What had come when sampling was broken off, and was not given out, but for the last one that was"""
        self.untold = 0
        """Replies without a count of tokens"""
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="model", daemon=True)
        self.thread.start()

    @property
    def made_from(self) -> dict[str, object]:
        return {"model": {"name": self.model, "body": self.extra}, "prompt": "messages, by the template of who serves it"}

    def encoder(self, part: ProblemSet, max_new_tokens: int) -> Any:
        """Prompts are sent as they are. ValueError for a set that a text alone cannot answer."""
        if answers(part.environment):
            raise ValueError(
                f"--data {part.source}: its environment answers between the turns, token in, token out, which an endpoint of chat does not "
                "do; evaluate the model's folder"
            )
        return lambda prompt: np.empty(0, np.int32)

    def lengths(self, sets: Sequence[ProblemSet], max_new_tokens: int) -> tuple[int, int]:
        """How long prompts are is for the servers to say."""
        new = max_new_tokens or LONGEST
        return new + 1, new

    def check(self, sets: Sequence[ProblemSet]) -> None:
        """One trial completion on every server, and whether it gives token ids. ValueError, within 30 s each, where one does not answer."""
        plain = all(prompt.messages is None for part in sets for prompt in part.prompts)
        try:
            asyncio.run_coroutine_threadsafe(self._check(plain), self.loop).result()
        except ValueError as error:
            raise of_model(error) from None

    async def _check(self, plain: bool) -> None:
        for endpoint in self.endpoints:
            endpoint.plain = plain
        await self.pool.check()
        trial = {"prompt": "1+1="} if plain else {"messages": [{"role": "user", "content": "1+1="}]}
        body = json.dumps({"model": self.model, **trial, "max_tokens": 1, "temperature": 0, "return_token_ids": True}).encode()
        try:
            self.tells_ids = all([(await endpoint.complete(body)).token_ids for endpoint in self.endpoints])
        except Failure as failure:
            if failure.reason != HTTP_4XX:  # else it refuses a field that it does not know
                raise ValueError(f"{failure}: a second trial request failed; see the server's log") from None

    def sample(self, part: ProblemSet, config: Config, requests: Sequence[Request]) -> Generator[Rollout]:
        """Each rollout as it comes. ValueError where no server is left, or all that is asked fails."""
        prompts, left = {prompt.id: prompt for prompt in part.prompts}, iter(requests)
        open_, failed = set[Future[Rollout]](), Counter[str]()
        self.come = []
        try:
            while open_ or (open_ := self._ask(left, prompts, self.at_once)):
                done, _ = wait(open_, return_when=FIRST_COMPLETED)
                for future in done:
                    rollout = future.result()
                    RANK.beat()
                    failed = failed + Counter([rollout.finish_reason]) if rollout.finish_reason.startswith(ERROR) else Counter()
                    if failed.total() >= HOPELESS or (failed and not self.pool.stats()["alive"]):
                        raise ValueError(
                            f"no server of --urls answers any more ({dict(failed)}); what has come is kept: look at their logs, start them "
                            "again, and give the same command"
                        )
                    yield rollout
                    open_.discard(future)  # whoever asked has it
                open_ |= self._ask(left, prompts, len(done))
        finally:
            if open_ and self.loop.is_running():
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result()  # a reply that is there has its future set
                self.come = [future.result() for future in open_ if future.done() and not future.exception()]
            for future in open_:
                future.cancel()

    def _ask(self, left: Iterator[Request], prompts: Mapping[str, Prompt], count: int) -> set[Future[Rollout]]:
        return {asyncio.run_coroutine_threadsafe(self._answer(r, prompts[r.prompt_id]), self.loop) for r in islice(left, count)}

    def body(self, request: Request, prompt: Prompt) -> bytes:
        asked = {"prompt": prompt.text} if prompt.messages is None else {"messages": list(prompt.messages)}
        drawn = {"max_tokens": request.max_new_tokens, "temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
        ids = {"return_token_ids": True} if self.tells_ids else {}
        return json.dumps({"model": self.model, **asked, **drawn, **ids, **self.extra}).encode()

    async def _answer(self, request: Request, prompt: Prompt) -> Rollout:
        try:
            reply, _ = await self.pool.complete(partial(self.body, request, prompt), self.deadline, near=prompt.id)
        except (Failure, TimeoutError) as fault:
            reply = Reply("", ERROR + (fault.reason if isinstance(fault, Failure) else TIMEOUT), 0)
        if reply.tokens is None and not reply.token_ids:
            self.untold += 1
        # −1: one of so many tokens, of which nobody has said which it is.
        tokens = np.array(reply.token_ids, np.int32) if reply.token_ids else np.full(reply.tokens or 0, -1, np.int32)
        return Rollout(
            prompt_id=request.prompt_id,
            sample=request.sample,
            prompt_tokens=request.prompt_tokens,
            tokens=tokens,
            logprobs=np.full(len(tokens), np.nan, np.float32),
            text=reply.text,
            finish_reason=reply.finish_reason,
            policy_version=0,
        )

    def close(self) -> None:
        """Ends what is open, and the thread."""

        async def shut() -> None:
            await self.pool.forgive()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.loop.stop()

        asyncio.run_coroutine_threadsafe(shut(), self.loop)
        self.thread.join(timeout=5.0)


def of_model(error: ValueError) -> ValueError:
    """The pool's words speak of a judge and its settings."""
    said = (
        str(error)
        .replace("genrm.urls", "--urls")
        .replace("genrm.model", "--model")
        .replace("genrm.allow_http (or --allow-http)", "--allow-http")
    )
    return ValueError(said.replace("SOUNDRL_GENRM_TOKEN", TOKEN_ENV).replace("the judge", "the model"))

"""One OpenAI-compatible chat endpoint: its address, its token, and one exchange of which every fault has a name."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import aiohttp
from yarl import URL

from soundrl.genrm.pool.address import checked_url
from soundrl.genrm.verdict import BAD_REPLY, HTTP_4XX, HTTP_5XX, UNREACHABLE, Place, Reply

MAX_BODY = 4 * 2**20  # bytes of a reply that are read at most; 16,384 tokens make about 0.1 MB of JSON
CHECK_SECONDS = 30.0  # wall clock of `Endpoint.check`
_MODELS_SECONDS = 5.0
_CONNECT_SECONDS = 10.0
_RETRIED_4XX = (408, 429)
OURS = frozenset("model messages max_tokens max_completion_tokens n stream stream_options temperature seed".split())
"""Fields of a request that are not the user's to set: they have settings of their own, or replies would not be read."""
# How servers write OpenAI's two ends of a text, letters alone: the model ended it, or a limit did.
_ENDED = frozenset(
    "stop eos eosid eostoken eot endturn endofturn endoftext stopsequence stoptoken stopword stopped "
    "complete completed finish finished done end normal success".split()
)
_CUT = frozenset("length maxtokens maxlength maxoutputtokens maxnewtokens maxcompletiontokens modellength tokenlimit".split())
# One model under a dated or otherwise numbered name: gpt-4o → gpt-4o-2024-08-06, gemini-2.0-flash-001, llama3:latest.
_VERSION = re.compile(r"[-@:](?:\d{3,8}|\d{4}-\d\d-\d\d|\d\d-\d{4}|\d\d-\d\d|latest)$")

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Failure(Exception):
    """An exchange without a usable reply. Its text never holds what the server said (that might quote the token)."""

    reason: str
    detail: str
    retry: bool = True  # whether the same request may succeed later
    status: int | None = None
    retry_after: float | None = None  # seconds that the server asks us to wait
    refused: bool = False  # nobody listens there, or the machine does not answer: no other request will fare better
    name: str | None = None  # under which other model's name a reply came

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Endpoint:
    """Address and manners of one endpoint; holds no connection: every exchange makes its own.

    `url` is the API's root as OpenAI's clients take it, `http://127.0.0.1:8000/v1`; with no path, `/v1` is meant. The bearer token
    is read from the environment variable *named* by `token_env`, and only if that is set.

    Replies must come under the model's own name, a dated form of it, none at all, or an alias that `check` has seen in `/models`; the first
    other name that came is the only one from then on. For an endpoint that answers under a name of its own, `model` is `asked=answered`.

    Raises `ValueError`, naming the setting and its cure, for a scheme other than http(s), credentials or a query in the URL, http to
    another machine without `allow_http`, and a token that no header can carry.
    """

    def __init__(self, url: str, model: str, *, token_env: str = "SOUNDRL_GENRM_TOKEN", allow_http: bool = False):
        self.url, self.loopback = checked_url(url, allow_http)
        if not model:
            raise ValueError("genrm.model is empty: name the model as the endpoint lists it under /models")
        self.model, _, answered = model.partition("=")
        self.other_name = answered or None  # under which replies come as well; None until one has
        self.told: tuple[str, ...] = ()  # prompts that it was trained on, as `check` has read them in `/models`: `NAME@PROMPT`
        self.token_env = token_env
        # Never stored as an attribute: a dump of this object or of a traceback's `self` then cannot show it.
        _token(token_env)

    def _session(self) -> aiohttp.ClientSession:
        """For one exchange, and so for one connection: bytes left over from one reply, or a reply sent twice, would be read as the reply to
        the next question and give it a verdict that is not its own. It costs 0.2 ms."""
        # `identity`: a body cannot be larger than what came over the wire (no compression bombs).
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        token = _token(self.token_env)
        if token:
            headers["authorization"] = f"Bearer {token}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # All other deadlines are the caller's: a read timeout starts anew with every byte that drips in.
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            # A proxy of the environment has no business between us and our own machine.
            trust_env=not self.loopback,
        )

    def body(self, messages: list[dict[str, str]], **sampling: Any) -> bytes:
        """One request. Example: `body([…], max_tokens=8)` → `{"model": "m", "messages": […], "max_tokens": 8}`."""
        return json.dumps({"model": self.model, "messages": messages, **sampling}).encode()

    async def complete(self, body: bytes, what: str = "chat/completions") -> Reply:
        """One exchange. Raises `Failure`; takes as long as the server does, so put it under `asyncio.timeout`."""
        status, headers, content = await self.exchange("POST", f"{self.url}/{what}", body)
        if status != 200:
            reason = HTTP_4XX if 400 <= status < 500 else HTTP_5XX if status >= 500 else BAD_REPLY
            retry = status in _RETRIED_4XX or status >= 500
            raise Failure(reason, f"HTTP {status}", retry=retry, status=status, retry_after=retry_after(headers.get("retry-after")))
        reply, name = parsed(content, chat=what != "completions")
        if name and name not in (self.model, self.other_name):
            if self.other_name is not None or not _same(self.model, name):
                detail = f"from model {ascii(name)[:80]}, not {self.model!r}"
                raise Failure(BAD_REPLY, detail, name=name)
            self.other_name = name
        return reply

    async def check(self, context: int = 0) -> None:
        """One trial completion of one token, and where `/models` tells it, whether prompt and critique of `context` tokens fit and which
        prompt it was trained on (`told`). Raises `ValueError`, within 30 s: one line, the setting at fault and what to do."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                try:
                    await self.probe()
                except Failure as failure:
                    if not (failure.name and self._alias(failure.name, await self._served())):
                        raise ValueError(await self._explained(failure)) from failure
                served = await self._served() if context else {}
        except TimeoutError:
            raise ValueError(
                f"{self.url} gave no answer in {CHECK_SECONDS:.0f} s: is the judge still loading, or genrm.urls wrong?"
            ) from None
        more = [name.removeprefix(f"{self.model}@") for name in served if name.startswith(f"{self.model}@") and not _VERSION.search(name)]
        self.told, held = tuple(more), served.get(self.model, {}).get("max_model_len")
        if isinstance(held, int) and held < context:
            raise ValueError(
                f"{self.url} holds {held} tokens of prompt and critique, and {context} may be needed: serve it with "
                f"--max-model-len {context}, or lower genrm.max_tokens by {context - held}"
            )

    def _alias(self, name: str, served: Mapping[str, dict[str, Any]]) -> bool:
        """Whether `/models` lists `name` beside the model's own, and not as another model (`root`, which vLLM tells); if so it holds."""
        ours, other = served.get(self.model), served.get(name)
        if self.other_name is not None or ours is None or other is None or ours.get("root") != other.get("root"):
            return False
        log.warning("judge %s answers as %s, which it lists beside %s: taken for the same model", self.url, ascii(name), ascii(self.model))
        self.other_name = name
        return True

    async def probe(self) -> None:
        """Health by a real generation, of one token: a server that lists its models may still be unable to run one. Raises `Failure`."""
        await self.complete(self.body([{"role": "user", "content": "1+1="}], max_tokens=1, temperature=0))

    async def _explained(self, failure: Failure) -> str:
        """What is at fault, and what to do."""
        where, status, detail = f"{self.url}/chat/completions", failure.status, failure.detail
        served = await self._served(_MODELS_SECONDS) if status in (400, 404, 422) else {}
        names = ", ".join(ascii(name)[:80] for name in list(served)[:8])
        token = "was refused" if os.environ.get(self.token_env) else "is missing"
        both = f"'{self.model}={ascii(failure.name or '')[1:-1][:80]}'"
        # The question was one short sum: hardly anything in it can be refused but its form.
        template = "give the model's tokenizer a chat template (vllm serve --chat-template); " if status == 400 else ""
        cures = (
            (status in (401, 403), f"answers HTTP {status}: the token {token}; put the right one into ${self.token_env}"),
            (
                "Certificate" in detail,
                f"has a certificate that is not trusted here ({detail}): name the file of its authority in $SSL_CERT_FILE",
            ),
            (failure.reason == UNREACHABLE, f"gives no answer ({detail}): start the judge there or correct genrm.urls"),
            (served and self.model not in served, f"has no model {self.model!r}: set genrm.model to one that it serves ({names})"),
            (status == 404, "does not exist (HTTP 404): genrm.urls must end where /chat/completions follows, mostly /v1"),
            (failure.name, f"answers {detail}: set genrm.model to the name it answers with, or, if that is the same model, to {both}"),
            (
                failure.reason == BAD_REPLY,
                f"gives no usable reply ({detail}): genrm.urls must name an OpenAI-compatible chat endpoint, and genrm.model the name it "
                "answers with",
            ),
            (True, f"refuses a trial request ({detail}): {template}see the server's log, or correct genrm.urls"),
        )
        return f"{where} {next(cure for applies, cure in cures if applies)}"

    async def pieces(self, text: str) -> list[str]:
        """The tokens of `text`, of its server's own tokenizer (vLLM's `/tokenize`); empty where it does not tell."""
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False, "return_token_strs": True}
        try:
            status, _, content = await self.exchange("POST", f"{self.url.removesuffix('/v1')}/tokenize", json.dumps(asked).encode())
            told = _json(content) if status == 200 else None
        except Failure:
            return []
        tokens = told.get("token_strs") if isinstance(told, dict) else None
        return tokens if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens) else []

    async def _served(self, seconds: float | None = None) -> dict[str, dict[str, Any]]:
        """What `/models` lists, by name; empty where the endpoint has no such list, or it does not come in so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                status, _, content = await self.exchange("GET", f"{self.url}/models", None)
            listed = _json(content)
        except (Failure, TimeoutError):
            return {}
        entries = listed.get("data") if isinstance(listed, dict) else None
        if status != 200 or not isinstance(entries, list):
            return {}
        return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)}

    async def exchange(self, method: str, url: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and at most `MAX_BODY` bytes of body (none is read of an error's body). Raises `Failure`."""
        headers = {"content-type": "application/json"} if body is not None else None
        answered = False
        try:
            async with (
                self._session() as session,
                # Redirects are not followed: the token would go along.
                session.request(method, URL(url, encoded=True), data=body, headers=headers, allow_redirects=False) as response,
            ):
                answered = True
                if response.status != 200:
                    return response.status, response.headers, b""
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise Failure(BAD_REPLY, "compressed, though it was asked not to be")
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > MAX_BODY:
                        raise Failure(BAD_REPLY, f"longer than {MAX_BODY} bytes")
                return response.status, response.headers, bytes(content)
        except aiohttp.ClientError as error:
            # From None: aiohttp's error holds the request, and the request its Authorization header.
            # A response error: what came was no HTTP, or more than its length said.
            reason = BAD_REPLY if answered or isinstance(error, aiohttp.ClientResponseError) else UNREACHABLE
            detail = f"{type(error).__name__}{' in mid reply' if answered else ''}"
            refused = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
            raise Failure(reason, detail, refused=refused) from None


def parsed(content: bytes, chat: bool = True) -> tuple[Reply, str | None]:
    """The first choice of a completion, every field checked by type, and the model's name, if any. Raises `Failure(bad_reply)`.

    A reply that arrived whole is the model's word even where it holds no text (null, a refusal, all of it in `reasoning_content`).
    """
    reply = _json(content)
    match reply:
        case {"choices": [{"message": (dict() | None) as message, "finish_reason": str(reason)} as choice, *_]}:
            text = _text((message or {}).get("content"))
        case {"choices": [{"text": str(text), "finish_reason": str(reason)} as choice, *_]} if not chat:
            pass
        case _:
            raise Failure(BAD_REPLY, "no choices[0] with a message and a finish_reason")
    name, usage = reply.get("model"), reply.get("usage")
    if text is None or not isinstance(name, str | None):
        raise Failure(BAD_REPLY, "message.content or the model's name is no text")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    ids = choice.get("token_ids")
    ids = tuple(ids) if isinstance(ids, list) and all(type(id_) is int and 0 <= id_ < 2**31 for id_ in ids) else ()
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text that a file can hold
    tokens = tokens if type(tokens) is int else None
    return Reply(text, _finish(reason), tokens, places=_places(choice.get("logprobs")), token_ids=ids), name


def _places(logprobs: Any) -> tuple[Place, ...]:
    """The tokens of a choice with the probabilities that it tells; none where it tells none, in the form of OpenAI's chat completions."""
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    places = []
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {"token": str(token), "top_logprobs": list(others)}:
                pass
            case _:
                return ()
        shares: dict[str, float] = {}
        for other in (*others, entry):  # the chosen one stands among the likeliest as well, or is less likely than they
            match other:
                case {"token": str(word), "logprob": (float() | int()) as logprob} if logprob <= 1e-6:
                    shares.setdefault(word, math.exp(logprob))
                case _:
                    return ()
        places.append(Place(token, shares))
    return tuple(places)


def _text(content: Any) -> str | None:
    """What is said in `content`: a text, null, or a list of parts, of which those of text count; None for anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict | str) for part in parts):
        return None
    said = [part for part in parts if isinstance(part, str) or part.get("type", "text") in ("text", "output_text")]
    texts = [part if isinstance(part, str) else part.get("text") for part in said]
    return "".join(text for text in texts if isinstance(text, str))


def _finish(reason: str) -> str:
    """Example: `end_turn`, `EOS`, `FinishReason.STOP` → `stop`; `MAX_TOKENS` → `length`; `content_filter` → as it is."""
    letters = re.sub(r"[^a-z]", "", reason.lower()).removeprefix("finishreason")
    return "stop" if letters in _ENDED else "length" if letters in _CUT else reason


def _same(asked: str, answered: str) -> bool:
    """Whether `answered` is `asked` with a version behind it, or with whoever serves it in front of either (`models/…`, `openai/…`)."""
    plain = _VERSION.sub("", answered.lower())
    return f"/{plain}".endswith(f"/{asked.lower()}") or f"/{asked.lower()}".endswith(f"/{plain}")


def _json(content: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(content.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Failure(BAD_REPLY, f"not JSON ({type(error).__name__})") from None


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, either form of RFC 9110 §10.2.3; None where it is absent or makes no sense.

    Example: `"2"` → 2.0; `"Wed, 21 Oct 2015 07:28:00 GMT"` → 0.0 (it has passed); `"soon"` → None.
    """
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def extra_fields(text: str, option: str) -> dict[str, Any]:
    """Further fields of every request's body, as the user of `option` wrote them. Example: `{"top_k": 20}` → `{"top_k": 20}`; an empty text
    → none. Raises `ValueError` for what is no JSON object and for fields of `OURS`."""
    try:
        fields = _json(text.encode()) if text.strip() else {}
    except Failure as failure:
        raise ValueError(f"{option} {text[:80]!r} is {failure.detail}: write an object, such as '{{\"top_p\": 0.95}}'") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{option} {text[:80]!r} is no JSON object: write one, such as '{{\"top_p\": 0.95}}'")
    if taken := sorted(OURS & fields.keys()):
        raise ValueError(f"{option} must not hold {', '.join(taken)}: leave it out, or use the setting of that name where there is one")
    return fields


def _token(name: str) -> str:
    token = os.environ.get(name, "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"the token in ${name} has a character that no HTTP header can carry: set it again")
    return token

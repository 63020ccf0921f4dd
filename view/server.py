"""The inspector's server: page files and the tree of JSON, on loopback, to whom the guard lets in."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from urllib.parse import parse_qsl

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from soundrl.view import labels
from soundrl.view.api import answer
from soundrl.view.guard import HEADERS, Guard, Refused
from soundrl.view.plain import NotThere, encoded, one_fault
from soundrl.view.runs import Runs

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
THREADS = 4  # that read at a time
UNREAD = 1 << 20  # bytes of a refused body that are still read: who closes with some unread resets the line, and the reason is lost
log = logging.getLogger(__name__)


class Body:
    """A request's messages, as ASGI's `receive`; knows whether more of the body is to come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.receive = receive
        self.more = all(name != b"expect" for name, _ in scope["headers"])  # who asks first has sent no body

    async def __call__(self) -> Message:
        message = await self.receive()
        self.more = message.get("more_body", False)
        return message

    async def rest(self) -> None:
        """Read what is to come and forget it, `UNREAD` at most."""
        read = 0
        while self.more and read < UNREAD:
            read += len((await self()).get("body", b""))


class App:
    """An ASGI application."""

    def __init__(self, runs: Runs, guard: Guard, page: Path = PAGE) -> None:
        self.runs, self.guard = runs, guard
        self.files = {file.name: file for file in page.iterdir() if file.suffix in TYPES and file.is_file()} if page.is_dir() else {}
        self._limit: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            body = Body(scope, receive)
            response = await self._respond(Request(scope, body))
            response.headers.update(HEADERS)
            if response.status_code >= 400:
                await body.rest()
            await response(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async def _respond(self, request: Request) -> Response:
        try:
            # As it was sent: no decoding, so that there is one spelling of each address.
            path = request.scope.get("raw_path", b"").split(b"?")[0].decode("latin-1")
            headers = request.scope["headers"]
            self.guard.check(request.method, path, headers)
            query = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=20)
            asked = dict(query)
            if path == "/" and "token" in asked and request.method == "GET":
                return self._enter(asked["token"])
            self.guard.admit(headers)
            if request.method == "POST":
                return await self._write(request, path)
            return await self._read(path, asked)
        except Refused as refused:
            return failed(refused.status, str(refused))
        except NotThere as absent:
            return failed(404, one_fault(absent))
        except ValueError as error:
            return failed(400, one_fault(error))
        except OSError as error:
            return failed(500, f"the run's folder cannot be read ({one_fault(error)}); look at its disk")
        except Exception as error:
            log.exception("a page failed")
            return failed(500, f"{type(error).__name__}: {one_fault(error)}; this is a fault of the inspector, please report it")

    def _enter(self, token: str) -> Response:
        """A cookie for the token, and an address without it."""
        if not self.guard.known(token):
            raise Refused(403, "this is not the token; open the address that the inspector printed when it started")
        response = Response(status_code=303, headers={"location": "/"})
        response.set_cookie(self.guard.cookie, self.guard.token, httponly=True, samesite="strict", path="/")
        return response

    async def _read(self, path: str, asked: dict[str, str]) -> Response:
        if path.startswith("/api/"):
            return Response(await self._in_thread(path[5:], asked), media_type="application/json")
        name = path[1:] or "index.html"
        if name not in self.files:
            raise NotThere("there is no such address; begin at /")
        file = self.files[name]
        return Response(await anyio.to_thread.run_sync(file.read_bytes), media_type=TYPES[file.suffix])

    async def _in_thread(self, path: str, asked: dict[str, str]) -> bytes:
        self._limit = self._limit or anyio.CapacityLimiter(THREADS)
        return await anyio.to_thread.run_sync(lambda: encoded(answer(self.runs, path, asked)), limiter=self._limit)

    async def _write(self, request: Request, path: str) -> Response:
        key, _, what = path.removeprefix("/api/").rpartition("/")
        if not path.startswith("/api/") or what != "labels":
            raise Refused(405, "only labels are written; ask with GET")
        self.guard.write(request.scope["headers"])
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            self.guard.body(len(body))
        try:
            said = json.loads(bytes(body))
        except (ValueError, RecursionError):
            raise ValueError("the label is no JSON; send an object with step, kind, g, sample and label") from None
        found = await anyio.to_thread.run_sync(lambda: labels.put(self.runs.run(key), said))
        return Response(encoded(found), media_type="application/json")


def failed(status: int, why: str) -> Response:
    return Response(encoded({"error": why}), status, media_type="application/json")

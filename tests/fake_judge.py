"""A scripted judge endpoint: a real HTTP server on loopback that hands every request to a script and witnesses what was asked."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from soundrl.genrm.verdict import BAD_INDEX, CUT_OFF, EMPTY, NO_BOX, OUT_OF_RANGE, SEVERAL

MODEL = "judge-model"
FLAW = "2+2=5"
Script = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    """Hands every POST, with its number (from 0), to the server's script."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        if self.path in ("/sleep?level=1", "/wake_up"):
            self.server.obey(self, self.path[1:])
            return
        self.body = json.loads(content)
        self.server.witness.append("asked in its sleep" if self.server.asleep else "asked")
        if self.server.asleep:
            self.send(503, {})
            return
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(self.body)
            self.server.times.append(time.monotonic())
            self.server.authorizations.append(self.headers.get("authorization"))
        try:
            self.server.script(self, number)
        except OSError:
            self.server.broken_off.set()
            self.close_connection = True

    def do_GET(self) -> None:
        if self.path == "/witness":
            self.send(200, self.server.witness)
            return
        if self.path == "/metrics":
            self.send(200, f'# HELP\nvllm:generation_tokens_total{{engine="0"}} {float(self.server.tokens)}\n'.encode())
            return
        if self.path == "/v1/models" and self.server.models is not None:
            self.server.models(self)
            return
        self.send(200, {"object": "list", "data": [{"id": MODEL}, {"id": "other"}]} if self.path == "/v1/models" else "no")

    def send(self, status: int, body: Any, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Witness of everything that was asked of it. Serves at once; `kill()` and `revive()` as a process would die and be started again.

    Put to sleep as vLLM's server is (`POST /sleep?level=1`, `/wake_up`), it answers 503 until it is woken; `GET /witness` tells.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script, port: int = 0, host: str = "127.0.0.1"):
        super().__init__((host, port), Handler)
        self.script = script
        self.lock = threading.Lock()
        self.broken_off = threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.authorizations: list[str | None] = []
        self.asleep = False
        self.tokens = 0
        """What `/metrics` says has been generated."""
        self.models: Callable[[Handler], None] | None = None
        """What `/v1/models` answers, where not the usual."""
        self.witness: list[str] = []
        """Orders and questions, as they came."""
        self.connections: list[socket.socket] = []
        self.port = self.server_address[1]
        self.url = f"http://{host}:{self.port}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        request = super().get_request()
        self.connections.append(request[0])
        return request

    def obey(self, handler: Handler, order: str) -> None:
        self.witness.append(order)
        self.asleep = order == "sleep?level=1"
        handler.send(200, {})

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def kill(self) -> None:
        """Nothing listens any more, and every connection is reset."""
        self.stop()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)

    def revive(self) -> Server:
        """A new server on the same port, with a memory of its own."""
        return Server(self.script, self.port)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def said(text: Any, finish_reason: Any = "stop", model: Any = MODEL, **message: Any) -> dict[str, Any]:
    return {"model": model, "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}]}


def replies(body: Any) -> Script:
    return lambda handler, number: handler.send(200, body)


def find_flaw(handler: Handler, number: int) -> None:
    """A judge that reads the tagged paragraphs and looks for the planted flaw."""
    content = handler.body["messages"][0]["content"].rpartition("\n[Solution]\n")[2]
    tagged = re.findall(r"^<paragraph_(\d+)>$(.*?)^</paragraph_\1>$", content, flags=re.DOTALL | re.MULTILINE)
    index = next((i for i, text in tagged if FLAW in text), "-1")
    handler.send(200, said(f"Checked {len(tagged)} paragraphs, so \\boxed{{{index}}}"))


SERVED = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import fake_judge
from fake_judge import Server, find_flaw
fake_judge.FLAW = [fake_judge.FLAW, *sys.argv[3:]][-1]
assert "RANK" not in os.environ
token = os.environ["VLLM_API_KEY"]
class Guarded(Server):
    def obey(self, handler, order):
        if handler.headers["authorization"] == f"Bearer {token}":
            super().obey(handler, order)
def script(handler, number):
    if handler.headers["authorization"] == f"Bearer {token}":
        find_flaw(handler, number)
    else:
        handler.send(401, {})
Guarded(script, int(sys.argv[2]))
print("serving", flush=True)
time.sleep(1e6)
"""
"""A process in place of vLLM's server: `python -c SERVED <tests folder> <port> [<flaw>]`, with the token of its environment."""


# Faults


def hang(handler: Handler, number: int) -> None:
    """Never answers; `broken_off` tells that the other side has closed."""
    handler.connection.settimeout(20)
    if handler.connection.recv(1) == b"":
        handler.server.broken_off.set()
    handler.close_connection = True


def half_a_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(json.dumps(said("\\boxed{-1}")).encode())
    handler.close_connection = True


def short_content_length(handler: Handler) -> None:
    content = json.dumps(said("\\boxed{-1}")).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) - 20))
    handler.end_headers()
    handler.wfile.write(content)


BAD_BODIES: dict[str, Any] = {
    "nothing": b"",
    "html": b"<html><body>502 Bad Gateway</body></html>",
    "no utf-8": b"\xff\xfe{}",
    "cut json": json.dumps(said("\\boxed{-1}")).encode()[:-3],
    "nan": b'{"model": "judge-model", "x": NaN, "choices": [{"message": {"content": "\\\\boxed{-1}"}, "finish_reason": "stop"}]}',
    "deep": b"[" * 200_000,
    "huge number": b'{"model": "judge-model", "x": ' + b"9" * 100_000 + b"}",
    "list": [said("\\boxed{-1}")],
    "text": "\\boxed{-1}",
    "no choices": {"model": MODEL},
    "empty choices": {"model": MODEL, "choices": []},
    "choices is an object": {"model": MODEL, "choices": {"0": said("\\boxed{-1}")["choices"][0]}},
    "no message": {"model": MODEL, "choices": [{"finish_reason": "stop", "text": "\\boxed{-1}"}]},
    "content is a number": said(-1),
    "content is a list of numbers": said([-1]),
    "null finish": said("\\boxed{-1}", None),
    "wrong model": said("\\boxed{-1}", model="other"),
    "another version": said("\\boxed{-1}", model="judge-model-mini"),
    "model is a number": said("\\boxed{-1}", model=1),
    "error in 200": {"error": {"message": "\\boxed{-1}"}},
}

NO_VERDICT: list[tuple[dict[str, Any], str]] = [
    (said("I see nothing wrong."), NO_BOX),
    (said("\\boxed{-1}", "length"), CUT_OFF),
    (said(None, "length"), CUT_OFF),
    (said("\\boxed{9}"), OUT_OF_RANGE),
    (said("\\boxed{-1 or 2}"), SEVERAL),
    (said("\\boxed{-1}" * 1000), SEVERAL),
    (said("\\boxed{fine}"), BAD_INDEX),
    (said(None), EMPTY),
    (said(""), EMPTY),
    (said(" \n"), EMPTY),
    (said([]), EMPTY),
    (said(None, reasoning_content="Checked. \\boxed{-1}"), EMPTY),
    (said(None, refusal="I cannot help."), EMPTY),
    (said([{"type": "refusal", "refusal": "No."}, {"type": "reasoning", "text": "\\boxed{-1}"}, {"type": "image_url"}]), EMPTY),
    ({"model": MODEL, "choices": [{"message": {"role": "assistant"}, "finish_reason": "end_turn"}]}, EMPTY),
    ({"model": MODEL, "choices": [{"message": None, "finish_reason": "STOP"}]}, EMPTY),
    (said(None, "tool_calls", tool_calls=[]), CUT_OFF),
    (said("", "content_filter"), CUT_OFF),
    (said("\\boxed{-1}", "SAFETY"), CUT_OFF),
    (said("\\boxed{-1}", "MAX_TOKENS"), CUT_OFF),
]
"""Replies that arrive whole and hold no verdict, and the reason."""

"""Runs inside the judge's server: no route without the token but `/health`, which says no more than that it lives, and which routers ask
without one. vLLM's own key guards `/v1` and little else (0.32): `/invocations` generates without it, and the routes by which a server is
put to sleep lie outside as well.

Pure ASGI: Starlette's middleware of functions would hide a client that has hung up, and an abandoned critique would be written to its end.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class RequireBearer:
    """`--middleware soundrl.genrm.serve.bearer.RequireBearer`; the token is `VLLM_API_KEY`'s, and KeyError ends a server without one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.expected = app, f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_to_all = scope["type"] == "lifespan" or (scope["type"], scope["path"]) == ("http", "/health")
        if open_to_all or hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self.expected):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
        else:
            await send({"type": "websocket.close", "code": 1008})

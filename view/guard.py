"""Who may ask, and what the answer lets a browser do. Whatever can read a run can read a person's data, so each request needs a token, the
very host and port that were bound, and no page of another origin behind it."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST = 24  # characters of a token that a person chooses
BODY = 64 << 10  # bytes
PATH = re.compile(r"/[A-Za-z0-9._=/-]{0,1000}")
"""Of every address that there is: names of runs are written so"""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
Headers = Sequence[tuple[bytes, bytes]]


class Refused(Exception):
    """A request that gets no answer but this line."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class Guard:
    """`host` and `port` as they were bound. ValueError where others could reach it without a token that a person has chosen."""

    host: str
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    labels: bool = True

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and len(self.token) < LEAST:
            raise ValueError(f"the token has {len(self.token)} characters; choose one of at least {LEAST}")
        if not re.fullmatch(r"[A-Za-z0-9._~-]+", self.token):
            raise ValueError("the token may hold letters, digits and ._~- alone; choose another one")
        names = LOOPBACK if self.host in LOOPBACK else (self.host,)
        self.hosts = {f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}" for name in names}
        if self.port == 80:
            self.hosts |= {f"[{name}]" if ":" in name else name for name in names}

    @property
    def cookie(self) -> str:
        """Its name: cookies are those of a host, whatever the port."""
        return f"soundrl-view-{self.port}"

    def address(self) -> str:
        """Where a person begins."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}/?token={self.token}"

    def known(self, said: str) -> bool:
        return hmac.compare_digest(said.encode("utf-8", "replace"), self.token.encode())

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Refused, with its status and a line. A token in the address is not looked at here."""
        if len(found := self._all(headers, b"host")) != 1 or found[0] not in self.hosts:
            raise Refused(403, f"this is no host of the inspector; open the address that it printed ({', '.join(sorted(self.hosts))})")
        for origin in self._all(headers, b"origin"):
            if origin not in {f"http://{host}" for host in self.hosts}:
                raise Refused(403, "a page of another origin asks; open the inspector's own address")
        if any(site not in ("same-origin", "none") for site in self._all(headers, b"sec-fetch-site")):
            raise Refused(403, "a page of another site asks; open the inspector's own address")
        if method not in ("GET", "HEAD", "POST"):
            raise Refused(405, "the inspector knows GET, HEAD and, for labels, POST")
        if not PATH.fullmatch(path) or "//" in path or any(part in (".", "..") for part in path.split("/")):
            raise Refused(404, "there is no such address; begin at /")

    def admit(self, headers: Headers) -> None:
        """Refused without the token, as a cookie or a bearer's."""
        bearers = [said[7:] for said in self._all(headers, b"authorization") if said[:7].lower() == "bearer "]
        cookies = [
            value
            for said in self._all(headers, b"cookie")
            for name, _, value in (each.strip().partition("=") for each in said.split(";"))
            if name == self.cookie
        ]
        if not any([self.known(said) for said in (*bearers, *cookies)]):
            raise Refused(403, "the token is missing or another one; open the address that the inspector printed when it started")

    def write(self, headers: Headers) -> None:
        """Refused unless it is JSON from the inspector's own page, or from a program that has the token."""
        if not self.labels:
            raise Refused(403, "this inspector writes no labels; start it without --no-labels")
        if [said.split(";")[0].strip().lower() for said in self._all(headers, b"content-type")] != ["application/json"]:
            raise Refused(400, "a label is JSON; send it with Content-Type: application/json")
        if not self._all(headers, b"origin") and not self._all(headers, b"authorization"):
            raise Refused(403, "nobody says which page sends this; send the token as a bearer's")
        self.body(next(iter(self._all(headers, b"content-length")), "0"))

    @staticmethod
    def body(length: str | int) -> None:
        """Refused where a body is larger than any that the inspector takes."""
        if not str(length).isdecimal() or int(length) > BODY:
            raise Refused(413, f"the body is larger than {BODY >> 10} KiB; a label takes less")

    @staticmethod
    def _all(headers: Headers, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in headers if key.lower() == name]

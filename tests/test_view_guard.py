"""Whom the inspector answers: a real server on loopback, asked over raw sockets by who should and who should not; each refusal beside the
request that differs in that one thing alone."""

import json
import socket
import threading
import time

import pytest
import uvicorn
from view_runs import write_run

from soundrl.view import server
from soundrl.view.__main__ import guard_of, listening
from soundrl.view.guard import CSP, HEADERS, Guard
from soundrl.view.runs import Runs


class Asked:
    """A server in a thread, and how to ask it."""

    def __init__(self, root, **more):
        self.taken = listening("127.0.0.1", 0)
        self.port = self.taken.getsockname()[1]
        self.guard = Guard("127.0.0.1", self.port, **more)
        page = root.parent / "page"
        page.mkdir(exist_ok=True)
        (page / "index.html").write_text("<!doctype html>the page")
        app = server.App(Runs(root), self.guard, page)
        settings = uvicorn.Config(
            app, http="h11", ws="none", log_level="warning", access_log=False, proxy_headers=False, server_header=False
        )
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.taken]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(10)
        self.taken.close()

    def raw(self, text: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line:
            line.sendall(text)
            out = b""
            while chunk := line.recv(65536):
                out += chunk
        return out

    def __call__(self, path="/api/runs.json", method="GET", body=b"", host=None, token=None, headers=()):
        """(status, headers, body); host and token as they should be where they are not given, left out where they are empty."""
        host = f"127.0.0.1:{self.port}" if host is None else host
        token = f"Authorization: Bearer {self.guard.token}" if token is None else token
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", token, "Connection: close", *headers]
        lines += (
            [f"Content-Length: {len(body)}"]
            if body and not any(line.startswith(("Content-Length", "Transfer")) for line in headers)
            else []
        )
        answer = self.raw("\r\n".join(line for line in lines if line).encode("latin-1") + b"\r\n\r\n" + body)
        head, _, content = answer.partition(b"\r\n\r\n")
        status, *rest = head.decode("latin-1").split("\r\n")
        return int(status.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}, content


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    root = tmp_path_factory.mktemp("guard") / "runs"
    write_run(root / "one", steps=1)
    asked = Asked(root)
    yield asked
    asked.stop()


def refused(answer, status, why):
    assert answer[0] == status, answer
    assert why in json.loads(answer[2])["error"]
    assert answer[1]["content-security-policy"] == CSP


def test_who_has_the_token_is_answered_with_every_header(ask):
    status, headers, body = ask()
    assert status == 200 and json.loads(body)["runs"][0]["key"] == "one"
    assert {name: headers[name] for name in HEADERS} == HEADERS and headers["cache-control"] == "no-store" and "server" not in headers
    assert "script-src 'self'" in CSP and "unsafe" not in CSP
    assert ask("/")[2] == b"<!doctype html>the page" and ask("/")[1]["content-type"].startswith("text/html")
    assert ask(method="HEAD")[0] == 200 and ask(method="HEAD")[2] == b""


@pytest.mark.parametrize(
    "token", ["X-None: 1", "Authorization: Bearer wrong", "Authorization: Basic {}", "Cookie: other={}", "Cookie: soundrl-view-1={}"]
)
@pytest.mark.parametrize("path", ["/", "/api/runs.json", "/api/one/run.json"])
def test_nothing_without_the_token(ask, token, path):
    refused(ask(path, token=token.format(ask.guard.token)), 403, "the token is missing")


def test_the_token_as_a_cookie(ask):
    status, headers, _ = ask(f"/?token={ask.guard.token}", token="X-None: 1")
    assert status == 303 and headers["location"] == "/"  # the address does not keep it
    name, *more = headers["set-cookie"].split("; ")
    assert name == f"soundrl-view-{ask.port}={ask.guard.token}" and {"HttpOnly", "SameSite=strict", "Path=/"} <= set(more)
    assert ask(token=f"Cookie: a=b; {name}")[0] == 200
    refused(ask("/?token=wrong", token="X-None: 1"), 403, "this is not the token")
    refused(ask(f"/api/runs.json?token={ask.guard.token}", token="X-None: 1"), 403, "the token is missing")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{}.evil.example", "127.0.0.1:{}, x", "2130706433:{}"]
)
def test_other_hosts_are_refused(ask, host):
    """A name that has been bound anew to loopback, too."""
    refused(ask(host=host.format(ask.port)), 403, "no host of the inspector")
    assert ask(host=f"localhost:{ask.port}")[0] == ask(host=f"[::1]:{ask.port}")[0] == 200


def test_no_host_or_two_are_refused(ask):
    token = f"Authorization: Bearer {ask.guard.token}\r\n".encode()
    assert ask.raw(b"GET /api/runs.json HTTP/1.1\r\n" + token + b"\r\n").startswith(b"HTTP/1.1 400")
    assert b" 403 " in ask.raw(b"GET /api/runs.json HTTP/1.0\r\n" + token + b"\r\n").split(b"\r\n")[0]
    good = f"Host: 127.0.0.1:{ask.port}\r\n".encode()
    two = ask.raw(b"GET /api/runs.json HTTP/1.1\r\n" + good + b"Host: evil.example\r\n" + token + b"\r\n")
    assert two.split()[1] in (b"400", b"403")
    assert b" 200 " in ask.raw(b"GET /api/runs.json HTTP/1.1\r\n" + good + token + b"Connection: close\r\n\r\n").split(b"\r\n")[0]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1:{}", "http://127.0.0.1:1", "null", "http://127.0.0.1:{}.evil.example"]
)
def test_other_origins_are_refused(ask, origin):
    refused(ask(headers=[f"Origin: {origin.format(ask.port)}"]), 403, "another origin")
    assert ask(headers=[f"Origin: http://127.0.0.1:{ask.port}", "Sec-Fetch-Site: same-origin"])[0] == 200
    refused(ask(headers=["Sec-Fetch-Site: cross-site"]), 403, "another site")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/api/../../secret.txt", "/api/one/../../secret.txt", "/%2e%2e/secret.txt", "/api/%2e%2e%2fsecret.txt",
        "/api/..%2fsecret.txt", "//secret.txt", "/api//one/run.json", "/api/one/./run.json", "/api\\one", "/api/=2E=2E/run.json",
        "/api/one=2F..=2F..=2Fsecret.txt", "/config.json", "/api/one/config.json", "/api/one/run.json%00", "http://127.0.0.1/api/runs.json",
    ],
)  # fmt: skip
def test_paths_stay_below_the_runs(ask, path):
    (ask_root := ask_folder(ask)).joinpath("secret.txt").write_text("not yours")
    status, _, body = ask(path)
    assert status == 404 and b"not yours" not in body
    assert ask("/api/one/run.json")[0] == 200 and (ask_root / "secret.txt").is_file()


def ask_folder(ask):
    return ask.server.config.app.runs.root.parent


def test_links_out_of_the_runs_are_refused(tmp_path):
    write_run(tmp_path / "elsewhere" / "hidden", steps=1)
    root = tmp_path / "runs"
    write_run(root / "one", steps=1)
    write_run(root / "two", steps=1)
    (root / "linked").symlink_to(tmp_path / "elsewhere" / "hidden")
    (root / "inside").symlink_to(root / "two")
    folder = root / "one" / "rollouts" / "step-000001"
    for file in folder.iterdir():
        file.unlink()
    for file in (tmp_path / "elsewhere" / "hidden" / "rollouts" / "step-000001").iterdir():
        (folder / file.name).symlink_to(file)
    asked = Asked(root)
    try:
        keys = [run["key"] for run in json.loads(asked()[2])["runs"]]
        assert keys == ["inside", "one", "two"]  # a link within them is one of them
        refused(asked("/api/linked/run.json"), 404, "no run has the key")
        refused(asked("/api/one/step-000001/train.json"), 404, "is a link out")
        assert asked("/api/two/step-000001/train.json")[0] == asked("/api/inside/step-000001/train.json")[0] == 200
    finally:
        asked.stop()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(ask, method):
    assert ask(method=method)[0] in (400, 405)


def post(ask, body=None, path="/api/one/labels", token=None, **headers):
    body = json.dumps({"step": 1, "g": 0, "sample": 1, "kind": "train", "label": 2}).encode() if body is None else body
    return ask(path, "POST", body, token=token, headers=[f"{name.replace('_', '-')}: {value}" for name, value in headers.items()])


def test_a_label_is_written_only_by_the_page_itself(ask):
    file = ask_folder(ask) / "runs" / "one" / "labels.jsonl"
    cookie, origin = f"Cookie: {ask.guard.cookie}={ask.guard.token}", f"http://127.0.0.1:{ask.port}"
    refused(post(ask, Content_Type="text/plain"), 400, "Content-Type: application/json")
    refused(post(ask), 400, "Content-Type: application/json")
    refused(post(ask, token=cookie, Content_Type="application/json"), 403, "which page")
    refused(post(ask, token=cookie, Content_Type="application/json", Origin="http://evil.example"), 403, "another origin")
    refused(post(ask, token="X-None: 1", Content_Type="application/json", Origin=origin), 403, "the token is missing")
    refused(post(ask, b"x" * 65537, Content_Type="application/json"), 413, "64 KiB")
    refused(post(ask, b"{}", path="/api/one/run.json", Content_Type="application/json"), 405, "only labels")
    refused(post(ask, b"{", Content_Type="application/json"), 400, "no JSON")
    refused(post(ask, b"[" * 60000, Content_Type="application/json"), 400, "no JSON")
    assert not file.exists()  # witness: none of them has written
    status, _, body = post(ask, token=cookie, Content_Type="application/json", Origin=origin)
    assert status == 200 and json.loads(body) == {"label": 2} and json.loads(file.read_text())["id"] == "1/p:0/1"
    assert post(ask, Content_Type="application/json; charset=utf-8")[0] == 200  # a program with the token
    file.unlink()


def test_a_body_in_chunks_is_cut_off_too(ask):
    chunk = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
    answer = post(ask, chunk + b"10\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n", Content_Type="application/json", Transfer_Encoding="chunked")
    refused(answer, 413, "64 KiB")


@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_too_much_reads_why(ask, monkeypatch, chunked):
    """A line that is closed with bytes unread is reset, and what was answered may never be seen."""
    body, how = b"x" * 900_000, {"Content_Type": "application/json"}
    if chunked:
        body, how = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), how | {"Transfer_Encoding": "chunked"}
    for _ in range(5):
        refused(post(ask, body, **how), 413, "64 KiB")
    refused(post(ask, body, token="X-None: 1", **how), 403, "the token is missing")
    refused(post(ask, body, path="/api/one/run.json", **how), 405, "only labels")
    monkeypatch.setattr(server, "UNREAD", 0)  # the inverse
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        for _ in range(50):
            post(ask, body, **how)


def test_who_asks_before_sending_sends_nothing(ask):
    how = {"Content_Type": "application/json", "Expect": "100-continue", "Content_Length": "900000"}
    refused(post(ask, b"", **how), 413, "64 KiB")


def test_no_labels_where_they_are_switched_off(tmp_path):
    write_run(tmp_path / "runs" / "one", steps=1)
    asked = Asked(tmp_path / "runs", labels=False)
    try:
        refused(post(asked, Content_Type="application/json"), 403, "writes no labels")
        assert asked()[0] == 200
    finally:
        asked.stop()


def test_other_addresses_need_a_token_of_ones_own(monkeypatch):
    monkeypatch.delenv("SOUNDRL_VIEW_TOKEN", raising=False)
    with pytest.raises(ValueError, match="set SOUNDRL_VIEW_TOKEN"):
        guard_of("192.0.2.1", 8000, True)
    assert len(guard_of("127.0.0.1", 8000, True).token) >= 40
    for token, why in (("short", "at least 24"), ("a b" * 10, "letters, digits")):
        monkeypatch.setenv("SOUNDRL_VIEW_TOKEN", token)
        with pytest.raises(ValueError, match=why):
            guard_of("192.0.2.1", 8000, True)
    monkeypatch.setenv("SOUNDRL_VIEW_TOKEN", "a" * 24)
    with pytest.raises(ValueError, match="give the address"):
        guard_of("0.0.0.0", 8000, True)
    guard = guard_of("192.0.2.1", 8000, True)
    assert guard.hosts == {"192.0.2.1:8000"} and guard.address() == f"http://192.0.2.1:8000/?token={'a' * 24}"


def test_a_port_that_is_taken_is_said():
    with listening("127.0.0.1", 0) as taken, pytest.raises(ValueError, match="choose another --port"):
        listening("127.0.0.1", taken.getsockname()[1])

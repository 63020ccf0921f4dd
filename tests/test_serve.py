"""Judges in processes of our own: started, watched, started again, and gone with whoever started them; one test with the real vLLM."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE
from fake_judge import MODEL, SERVED
from transformers import AutoConfig, AutoModelForCausalLM

from soundrl.engine.environments.arithmetic.models import critic_tokenizer
from soundrl.engine.files.run_reader import RunReader
from soundrl.fapo.records import Verdict
from soundrl.genrm.pool import scorer
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.serve import machine, server
from soundrl.genrm.serve import servers as serve
from soundrl.genrm.serve.api_server import inspect_here
from soundrl.genrm.serve.bearer import RequireBearer
from soundrl.genrm.serve.servers import TOKEN_ENV, JudgeServers, ServeError, Serving, Worker
from soundrl.genrm.verdict import UNREACHABLE


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A model folder, a fake server in place of vLLM's, and a watch that looks often."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Worker, "command", lambda self: [sys.executable, "-c", SERVED, str(Path(__file__).parent), str(self.port)])
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.05)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(TOKEN_ENV, "canary-71")
    return tmp_path


def ask(judge: EndpointJudge, count: int) -> list[Verdict]:
    futures = [judge.critique(f"Sum {i}?", ["Start.", "2+2=5"], "4") for i in range(count)]
    return [future.result(120) for future in futures]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stuck_server_is_started_again_and_nothing_is_lost(folder, monkeypatch, how):
    monkeypatch.setattr(server, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(server, "SICK_SECONDS", 1.5)
    with JudgeServers(Serving(model=folder, name=MODEL, workers=2), logs=folder) as servers:
        servers.wait(120)
        with EndpointJudge(servers.urls, MODEL, deadline=20.0, concurrency=4) as judge:
            judge.check()
            victim = servers.workers[0].process
            assert victim is not None
            os.killpg(victim.pid, how)
            assert ask(judge, 40) == [Verdict.flawed(1)] * 40
            end = time.monotonic() + 120
            while servers.started < 3 or judge.stats()["alive"] < 2:
                assert time.monotonic() < end, "the server did not come back"
                time.sleep(0.05)
            assert servers.workers[0].process is not victim
            assert ask(judge, 40) == [Verdict.flawed(1)] * 40
    assert all(not worker.alive for worker in servers.workers)


BUSY = (
    SERVED.replace(
        "        find_flaw(handler, number)\n",
        """        if number:  # a full queue: our own question gets no turn
            time.sleep(1e6)
        find_flaw(handler, number)
""",
    )
    .replace(
        'print("serving"',
        """server, moves = Guarded.all[0], sys.argv[4] == "moves"
import threading
def work():
    while True:
        server.tokens += moves
        time.sleep(0.01)
threading.Thread(target=work, daemon=True).start()
print("serving\"""",
    )
    .replace(
        "class Guarded(Server):",
        """class Guarded(Server):
    all = []
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.all.append(self)""",
    )
)


@pytest.mark.parametrize("moves", [True, False])
def test_a_full_server_that_works_is_not_killed(folder, monkeypatch, moves):
    """Its queue holds our own question back for longer than anybody would wait; the counter of its tokens moves, or it does not."""
    monkeypatch.setattr(server, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(server, "SICK_SECONDS", 3.0)
    command = [sys.executable, "-c", BUSY, str(Path(__file__).parent)]
    monkeypatch.setattr(Worker, "command", lambda self: [*command, str(self.port), "2+2=5", "moves" if moves else "stands"])
    unanswered: list[object] = []
    fault = Worker.fault
    monkeypatch.setattr(Worker, "fault", lambda self: unanswered.append(found := fault(self)) or found)
    with JudgeServers(Serving(model=folder, name=MODEL), logs=folder) as servers:
        servers.wait(120)
        end = time.monotonic() + 60
        while servers.started == 1 and sum(isinstance(one, TimeoutError) for one in unanswered) < 8:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert servers.started == (1 if moves else 2)
        assert sum(isinstance(one, TimeoutError) for one in unanswered) >= 2  # witness: our question got no answer


@pytest.mark.parametrize(
    ("listed", "count", "names"),
    [
        (None, 2, ["0", "1"]),
        ("4,5,6,7", 4, ["4", "5", "6", "7"]),
        (" 6, 2 ", 2, ["6", "2"]),
        ("GPU-8932f937,GPU-46f7e2c1", 2, ["GPU-8932f937", "GPU-46f7e2c1"]),
        ("MIG-1c0,MIG-2c0", 1, ["MIG-1c0", "MIG-2c0"]),  # a process sees one instance at most
        ("3,-1,5", 1, ["3"]),
        ("0,99", 1, ["0"]),
    ],
)
def test_a_worker_takes_a_gpu_of_the_callers_list(tmp_path, monkeypatch, listed, count, names):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False) if listed is None else monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    settings = Serving(model=tmp_path, workers=len(names))
    workers = [Worker(settings, number, "canary-75", tmp_path) for number in range(len(names))]
    assert [worker.environment()["CUDA_VISIBLE_DEVICES"] for worker in workers] == names
    with pytest.raises(ValueError, match=r"each worker takes one; start fewer, or name more in CUDA_VISIBLE_DEVICES"):
        Worker(settings, len(names), "canary-75", tmp_path)


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_worker_of_several_gpus_takes_the_next_ones(tmp_path, monkeypatch, sleeps):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 32}))
    monkeypatch.setattr(server, "visible_gpus", lambda: [*"46792"])
    settings = Serving(model=tmp_path, workers=3, tensor_parallel=2)
    workers = [Worker(settings, number, "canary-77", tmp_path, sleeps) for number in range(2)]
    assert [worker.environment()["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["4,6", "7,9"]
    for worker in workers:
        command = worker.command()
        assert command[command.index("--tensor-parallel-size") + 1] == "2" and ("--enable-sleep-mode" in command) is sleeps
    assert "--tensor-parallel-size" not in Worker(Serving(model=tmp_path), 0, "canary-77", tmp_path).command()
    with pytest.raises(ValueError, match=r"genrm.workers 3, but there are 5 GPUs \(4, 6, 7, 9, 2\): each worker takes 2; start fewer"):
        Worker(settings, 2, "canary-77", tmp_path)
    for gpus in ([], ["MIG-1c0", "MIG-2c0"]):
        monkeypatch.setattr(server, "visible_gpus", lambda gpus=gpus: gpus)
        with pytest.raises(ValueError, match="genrm.workers: 2 GPUs a server need whole GPUs, and there are none here: set 1"):
            Worker(settings, 0, "canary-77", tmp_path)
    with pytest.raises(ValueError, match="genrm.tensor_parallel 3 does not divide the 32 attention heads of"):
        Serving(model=tmp_path, tensor_parallel=3)


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("memory", "gpus", "parallel", "length"),
    [
        (1.0, [], 1, 22_528),  # 512 bytes a token: the paper's prompt and critique
        (0.005, [], 1, 10_240),  # what is there
        (0.3, ["3"], 1, 22_528),
        (0.1, ["3"], 1, 7_040),  # 4.5 MiB beside the work, 1 of them for weights
        (0.1, ["3", "5"], 2, 16_256),  # of weights and of a token's bytes each has half
    ],
)
def test_a_servers_default_length_starts_on_what_is_there(tmp_path, monkeypatch, memory, gpus, parallel, length):
    """Of a model of 262,144 positions, of which no card holds a whole text."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"max_position_embeddings": 262_144}))
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    monkeypatch.setattr(server, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(machine, "gpu_bytes", lambda name: int((3 * 2**30 + 4.5 * 2**20) / 0.1))
    settings = Serving(model=tmp_path, memory=memory, tensor_parallel=parallel)
    assert settings.planned().max_length == length
    assert Serving(model=tmp_path, memory=memory, max_length=77).planned().max_length == 77  # as it is told
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"max_position_embeddings": 512}))
    assert settings.planned().max_length == 512
    with pytest.raises(ValueError, match="memory 0.0001 leaves a KV cache of 0 tokens .* raise --memory"):
        Serving(model=tmp_path, memory=0.0001, tensor_parallel=parallel).planned()


@pytest.mark.parametrize("listed", ["", "-1", " ", "-1,0"])
def test_a_list_without_a_gpu_is_refused_where_there_are_some(monkeypatch, listed):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    with pytest.raises(ValueError, match="leaves no GPU to serve a judge on"):
        machine.visible_gpus()
    monkeypatch.setattr("torch.version.cuda", None)
    assert machine.visible_gpus() == []  # a CPU build serves on CPU


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 262_144}, 2048 + 512 + machine.MARGIN),
        ({"max_position_embeddings": 256}, 256),
        ({"n_positions": 1024, "max_position_embeddings": 2048}, 1024),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({}, 2048 + 512 + machine.MARGIN),
    ],
)
def test_a_server_is_as_long_as_it_must_be(tmp_path, config, length):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert machine.served_length(tmp_path, 2048, 512) == length


def test_the_command_keeps_a_drawn_token_where_its_user_finds_it(folder, monkeypatch, capsys):
    monkeypatch.delenv(TOKEN_ENV)
    asked: list[list[Verdict]] = []

    def interrupted(signals: set[int]) -> None:
        said = capsys.readouterr().out
        token = Path(said.partition("$(cat ")[2].partition(")")[0])
        assert said.startswith(f"export {TOKEN_ENV}=$(cat ") and token.stat().st_mode & 0o777 == 0o600
        monkeypatch.setenv(TOKEN_ENV, token.read_text())  # as in another shell
        with EndpointJudge(said.split("--genrm.urls ")[1].split(" --")[0].split(), MODEL, deadline=20.0) as judge:
            judge.check()
            asked.append(ask(judge, 2))

    monkeypatch.setattr(signal, "sigwait", interrupted)
    serve.main(Serving(model=folder, name=MODEL))
    assert asked == [[Verdict.flawed(1)] * 2]


def test_a_drawn_token_leaves_with_the_last_server_that_asks_for_it(folder, monkeypatch):
    """Who is asked afterwards (the endpoint of a teacher, after a policy's folder was served) is not sent it."""

    def one() -> JudgeServers:
        return JudgeServers(Serving(model=folder, name=MODEL), logs=folder)

    for empty in (None, " "):
        monkeypatch.setenv(TOKEN_ENV, empty) if empty else monkeypatch.delenv(TOKEN_ENV)
        with one() as first:
            drawn = os.environ[TOKEN_ENV]
            with one() as second:
                assert first.token == second.token == drawn and len(drawn) == 32
                first.close()
                first.close()  # twice, as one may
                assert os.environ[TOKEN_ENV] == drawn  # the second one's workers are still asked with it
        assert TOKEN_ENV not in os.environ
        with one() as third:
            assert third.token != drawn
        with pytest.raises(ValueError, match="need whole GPUs"):
            JudgeServers(Serving(model=folder, tensor_parallel=2, max_length=8), logs=folder)
        assert TOKEN_ENV not in os.environ
    # One of our own stays, and so does one that somebody has put there meanwhile.
    monkeypatch.setenv(TOKEN_ENV, "canary-73")
    with one() as mine:
        assert mine.token == "canary-73"
    assert os.environ[TOKEN_ENV] == "canary-73"
    monkeypatch.delenv(TOKEN_ENV)
    with one():
        monkeypatch.setenv(TOKEN_ENV, "canary-75")
    assert os.environ[TOKEN_ENV] == "canary-75"


def test_an_address_that_others_reach_needs_a_token_of_ours(folder, monkeypatch):
    wide = Serving(model=folder, name=MODEL, host="0.0.0.0")
    monkeypatch.setenv(TOKEN_ENV, " ")
    with pytest.raises(ValueError, match=r"--host 0.0.0.0 can be reached by others: put a token into \$SOUNDRL_GENRM_TOKEN"):
        JudgeServers(wide, logs=folder)
    monkeypatch.undo()
    worker = Worker(wide, 0, "canary-76", folder)
    assert worker.url == f"http://127.0.0.1:{worker.port}/v1"
    assert worker.command()[worker.command().index("--host") + 1] == "0.0.0.0"
    with pytest.raises(ValueError, match=f"--port {worker.port} cannot be listened on"), socket.socket() as other:
        worker.held.close()
        other.bind(("0.0.0.0", worker.port))
        other.listen()
        Worker(Serving(model=folder, port=worker.port), 0, "canary-76", folder)


def test_nobody_takes_a_servers_port_while_it_is_down(folder):
    with JudgeServers(Serving(model=folder, name=MODEL), logs=folder) as servers:
        servers.wait(120)
        (worker,) = servers.workers
        with servers._looking:  # nobody starts it again
            worker.stop()
            with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
                other.bind(("127.0.0.1", worker.port))
            worker.start()
        servers.wait(120)  # the server itself gets it
    assert worker.held.fileno() == -1  # inverse: given back; to bind it again would be a race with whoever takes it next


def runs(pid: str) -> bool:
    """Not for a zombie, whom nobody may have collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("ignored", [False, True])
def test_a_stopped_server_is_gone_even_if_it_does_not_listen(folder, monkeypatch, ignored):
    """Whoever starts the next one needs its port and its memory."""
    script = f"import os, signal, time; {ignored} and signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True)"
    monkeypatch.setattr(Worker, "command", lambda self: [sys.executable, "-c", f"{script}; time.sleep(1e6)"])
    with JudgeServers(Serving(model=folder, name=MODEL), logs=folder) as servers:
        (worker,) = servers.workers
        end = time.monotonic() + 120
        while not (said := worker.log.read_text().split()):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert runs(said[0])  # witness
        worker.stop()
        assert not runs(said[0])


def witness(worker: Worker) -> list[str]:
    """What the fake has seen, repetitions left out."""
    with urllib.request.urlopen(f"{worker.root}/witness", timeout=1200) as reply:
        return [kind for kind, _ in itertools.groupby(json.load(reply))]


@pytest.fixture
def sleepers(folder) -> Iterator[JudgeServers]:
    with JudgeServers(Serving(model=folder, name=MODEL, workers=2), logs=folder, sleeps=True) as servers:
        servers.wait(120)
        yield servers


@pytest.mark.parametrize("knows", [True, False])
def test_sleeping_servers_are_left_alone(sleepers, knows):
    sleepers.sleep()
    if not knows:
        sleepers.asleep = False
    # Inverse: a watch that does not know of their sleep does ask.
    want = [["asked", "sleep?level=1", *([] if knows else ["asked in its sleep"])]] * 2
    until = time.monotonic() + (0.5 if knows else PATIENCE)  # five looks of the watch; on a busy machine they come later
    while (seen := [witness(worker) for worker in sleepers.workers]) != want or (knows and time.monotonic() < until):
        assert time.monotonic() < until, seen
        time.sleep(0.1)
    sleepers.wake(20)
    with EndpointJudge(sleepers.urls, MODEL, deadline=20.0) as judge:
        assert ask(judge, 20) == [Verdict.flawed(1)] * 20
    assert sleepers.started == 2 and all(witness(worker)[-2:] == ["wake_up", "asked"] for worker in sleepers.workers)


def test_a_server_that_dies_in_its_sleep_is_started_when_it_is_needed(sleepers):
    sleepers.sleep()
    victim = sleepers.workers[0].process
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait(120)
    time.sleep(0.5)
    assert sleepers.started == 2  # its memory belongs to others now
    sleepers.wake(20)
    assert sleepers.started == 3 and witness(sleepers.workers[0]) == ["asked"] and sleepers.workers[1].fault() is None


def test_a_server_that_does_not_fall_asleep_is_killed(sleepers, monkeypatch):
    """It would hold memory that others are about to take."""
    monkeypatch.setattr(server, "ORDER_SECONDS", 0.5)
    stuck, sound = sleepers.workers
    os.killpg(stuck.process.pid, signal.SIGSTOP)
    sleepers.sleep()
    assert not stuck.alive and sound.alive and witness(sound)[-1] == "sleep?level=1"
    sleepers.wake(20)
    assert sleepers.started == 3 and stuck.fault() is None and sound.fault() is None


def test_a_server_that_never_wakes_is_named_and_its_verdicts_are_unknown(sleepers, monkeypatch, caplog):
    sleepers.sleep()
    monkeypatch.setattr(Worker, "command", lambda self: [sys.executable, "-c", "raise SystemExit('no such GPU')"])
    for worker in sleepers.workers:
        os.killpg(worker.process.pid, signal.SIGKILL)
    sleepers.wake(1.0)
    for worker in sleepers.workers:
        assert f"judge {worker.url} has not woken up: 'no such GPU'" in caplog.text
    with EndpointJudge(sleepers.urls, MODEL, deadline=20.0, gone_after=0.2) as judge:
        assert ask(judge, 4) == [Verdict.unknown(UNREACHABLE)] * 4


def test_a_server_that_cannot_start_says_why(folder, monkeypatch):
    monkeypatch.setattr(Worker, "command", lambda self: [sys.executable, "-c", "raise SystemExit('no such GPU')"])
    with JudgeServers(Serving(model=folder), logs=folder) as servers, pytest.raises(ServeError, match="status 1: 'no such GPU'"):
        servers.wait(120)


def test_a_server_without_chat_template_is_not_waited_for(folder, monkeypatch):
    refusing = SERVED.replace("        find_flaw(handler, number)", "        handler.send(400, {})")
    monkeypatch.setattr(Worker, "command", lambda self: [sys.executable, "-c", refusing, str(Path(__file__).parent), str(self.port)])
    with JudgeServers(Serving(model=folder, name=MODEL), logs=folder) as servers, pytest.raises(ValueError, match="a chat template"):
        servers.wait()


def test_what_cannot_be_served_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no model folder"):
        Serving(model=tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="workers, threads and tensor_parallel must be at least 1"):
        Serving(model=tmp_path, workers=0)


def test_the_server_listens_on_loopback_and_its_token_is_on_no_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # as a run on several nodes has it
    (tmp_path / "config.json").write_text("{}")
    worker = Worker(Serving(model=tmp_path), 0, "canary-72", tmp_path)
    command = worker.command()
    assert command[command.index("--host") + 1] == "127.0.0.1" and not any("canary" in part for part in command)
    own = worker.environment()
    assert own["VLLM_API_KEY"] == "canary-72" and "--trust-remote-code" not in command
    assert (own["GLOO_SOCKET_IFNAME"], own["VLLM_HOST_IP"]) == ("lo", "127.0.0.1")


@pytest.mark.parametrize("eager", [True, False])
def test_on_a_cpu_it_takes_the_memory_it_was_given_and_compiles_only_where_it_may(tmp_path, monkeypatch, eager):
    monkeypatch.setattr(server, "visible_gpus", lambda: ())
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # of the user's own
    (tmp_path / "config.json").write_text("{}")
    worker = Worker(Serving(model=tmp_path, memory=0.25, eager=eager), 0, "token", tmp_path)
    command = worker.command()
    assert command[command.index("-m") + 1] == "soundrl.genrm.serve.api_server" and ("--enforce-eager" in command) is eager
    assert command[command.index("--kv-cache-memory-bytes") + 1] == str(2**28)
    assert worker.environment()["TORCHDYNAMO_DISABLE"] == str(int(eager)) and "VLLM_CPU_KVCACHE_SPACE" not in worker.environment()


def test_on_a_gpu_it_is_vllms_own_server(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "visible_gpus", lambda: ("0", "1"))
    (tmp_path / "config.json").write_text("{}")
    worker = Worker(Serving(model=tmp_path, memory=0.25), 0, "token", tmp_path)
    assert "vllm.entrypoints.openai.api_server" in worker.command() and "--kv-cache-memory-bytes" not in worker.command()


@pytest.mark.parametrize("named", [["Known"], ["Known", "Unknown"], ["Unknown"], [], None])
def test_the_models_class_is_looked_at_in_the_servers_own_process(tmp_path, monkeypatch, named):
    """vLLM starts a process for a class that it knows by name only; one that is registered as a class needs none."""
    registered: dict[str, object] = {}
    lazy = SimpleNamespace(load_model_cls=lambda: dict)
    registry = SimpleNamespace(models={"Known": lazy, "Other": lazy}, register_model=registered.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    (tmp_path / "config.json").write_text(json.dumps({} if named is None else {"architectures": named}))
    inspect_here(tmp_path)
    assert registered == ({"Known": dict} if "Known" in (named or []) else {})


@pytest.mark.parametrize("sleeps", [True, False])
def test_sleep_mode_is_asked_for_where_it_is_needed_and_every_route_wants_the_token(tmp_path, monkeypatch, sleeps):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")  # of the user's own
    worker = Worker(Serving(model=tmp_path), 0, "canary-73", tmp_path, sleeps)
    assert ("--enable-sleep-mode" in worker.command()) is sleeps
    assert worker.environment()["VLLM_SERVER_DEV_MODE"] == str(int(sleeps))
    path = worker.command()[worker.command().index("--middleware") + 1]
    assert path == f"{RequireBearer.__module__}.{RequireBearer.__qualname__}"


@pytest.mark.parametrize("header", [None, b"Bearer canary-7", b"Bearer canary-744", b"canary-74", b"Bearer canary-74"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_no_route_answers_without_the_token(monkeypatch, header, kind):
    monkeypatch.setenv("VLLM_API_KEY", "canary-74")
    reached: list[str] = []
    sent: list[dict] = []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": "/wake_up", "headers": [(b"host", b"x"), *([(b"authorization", header)] if header else [])]}
    asyncio.run(RequireBearer(app)(scope, None, send))  # type: ignore[arg-type]
    if header == b"Bearer canary-74":
        assert reached == ["/wake_up"] and not sent
    else:
        assert not reached and sent[0] == (
            {"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]}
            if kind == "http"
            else {"type": "websocket.close", "code": 1008}
        )


@pytest.mark.parametrize("path", ["/health", "/health/", "/healthy", "/v1/health", "//health", "/HEALTH", "/health?x=/wake_up"])
def test_a_router_may_ask_whether_it_lives_and_nothing_else(monkeypatch, path):
    monkeypatch.setenv("VLLM_API_KEY", "canary-79")
    reached: list[str] = []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    async def send(message):
        pass

    for kind in ("http", "websocket"):
        asyncio.run(RequireBearer(app)({"type": kind, "path": path, "headers": []}, None, send))  # type: ignore[arg-type]
    assert reached == (["http"] if path == "/health" else [])


def test_servers_do_not_outlive_a_killed_trainer(folder):
    code = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from soundrl.genrm.serve.servers import JudgeServers, Serving, Worker\n"
        "Worker.command = lambda self: [sys.executable, '-c', *sys.argv[2:], str(self.port)]\n"
        "servers = JudgeServers(Serving(model=Path(sys.argv[1]), name='judge-model'), logs=Path(sys.argv[1]))\n"
        "servers.wait(120)\n"
        "print(servers.workers[0].process.pid, flush=True)\n"
        "os._exit(9)\n"
    )
    command = [sys.executable, "-c", code, str(folder), SERVED, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 9, done.stderr[-2000:]
    group, end = int(done.stdout), time.monotonic() + 120
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < end, "the server is still there"
        time.sleep(0.05)


def write_long(folder: Path) -> None:
    """A Qwen3 with random weights that says, as Qwen3-4B-Instruct-2507 does, that it takes 262,144 tokens: 512 MiB of KV cache."""
    tokenizer = critic_tokenizer()
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.eos_token_id}
    shape |= {"head_dim": 32, "max_position_embeddings": 262_144, "vocab_size": len(tokenizer), "dtype": "float32"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **shape, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert machine.cached_bytes(folder, 2) * 262_144 == 2**28  # far more than is given here; vLLM does not start with less


def test_the_command_serves_a_model_of_262144_positions(tmp_path):
    """Through vLLM, with the length that its memory holds."""
    write_long(tmp_path / "critic")
    command = [sys.executable, "-m", "soundrl.genrm.serve", "--model", str(tmp_path / "critic"), "--eager", "--memory", "0.01"]
    token = {TOKEN_ENV: "canary-78"}
    with subprocess.Popen(command, env=os.environ | token, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        url = said.split()[1]
        asked = urllib.request.Request(f"{url}/models", headers={"authorization": "Bearer canary-78"})
        with urllib.request.urlopen(asked, timeout=120) as reply:
            served = json.load(reply)["data"]
        process.terminate()
    assert said.startswith("--genrm.urls http://127.0.0.1:") and [one["max_model_len"] for one in served] == [10_240] * len(served)


def test_a_run_serves_its_own_judge_through_vllm(forked_train, tmp_path):
    """A critic with random weights and 262,144 positions: every verdict is unknown, counted by reason, and no rollout earns by it."""
    write_long(tmp_path / "critic")
    small = ("--model.path", "starts/policy", "--warm-start.steps", 0, "--run.steps", 1, "--data.test", "--rollout.engine", "torch")
    judge = ("--genrm.judge", "serve", "--genrm.model", tmp_path / "critic", "--genrm.max-tokens", 30, "--genrm.unknown", "drop", 1.0)
    statuses, words = forked_train("arith", *small, *judge, "--run.folder", tmp_path)
    assert statuses == [0], words[-6000:]
    run = RunReader(tmp_path / "arith")
    rows = run.metrics()
    row = next(row for row in rows if "loss/policy" in row)
    assert row["genrm/unknown"] == 1.0 and row["genrm/alive"] == 1.0 and row["genrm/requests"] > 0
    assert row["genrm/precision"] == row["genrm/recall"] == 0.0 and "fapo/true_flawed_ratio" in row
    assert sum(value for name, value in row.items() if name.startswith("genrm/unknown_")) > 0
    rollouts = run.rollouts(1)
    judged = [r for r in rollouts if r["outcome"] == "correct"]
    assert judged and all(r["verdict"]["kind"] == "unknown" and not r["kept"] and r["advantage"] == 0.0 for r in judged)

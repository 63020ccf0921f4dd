"""Judges that we serve ourselves: N vLLM API servers in processes of their own, watched by real generations and started again.

    python -m soundrl.genrm.serve --model models/FAPO-GenRM-4B --workers 2

Each listens on loopback alone and asks for a token on every route, which is drawn where the environment holds none and reaches the server
through its environment (a command line can be read by every user of the machine). A server that has died, or has not generated a token
for `SICK_SECONDS`, is killed and started again on the same port, so that a pool that knows its URL finds it again by itself.

Servers that share their GPUs with a policy that needs all of the memory *sleep* (vLLM's level 1: weights in host memory, no KV cache) but
for the phase in which they judge. In their sleep nobody asks them, and none is started: its memory belongs to others then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soundrl.genrm.endpoint import Endpoint, Failure

TOKEN_ENV = "SOUNDRL_GENRM_TOKEN"
START_SECONDS = 600.0
"""A large model loads for minutes."""
LOOK_SECONDS = 5.0
PROBE_SECONDS = 20.0
ORDER_SECONDS = 120.0
"""To fall asleep or wake up: weights cross the bus in seconds, 64 GB of them in half a minute where host memory is slow."""
SICK_SECONDS = 120.0
"""Longer than the longest wait of a probe behind a full batch."""
LEAST_BATCHED_TOKENS = 8192
MAX_RESTARTS = 5
"""In a row, without a generation between them."""

log = logging.getLogger(__name__)


class ServeError(RuntimeError):
    """A judge could not be started, or dies whenever it is."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a judge is served."""

    model: Path
    """Model folder (safetensors; no code of its own is run)."""
    name: str = "genrm"
    """Its name on the wire; replies under another name are refused, so that a version in it is checked with every reply."""
    workers: int = 1
    """Processes; on a machine with GPUs worker i takes GPU i modulo their number."""
    max_length: int = 0
    """Longest prompt + critique, in tokens; 0 = the model's own."""
    dtype: str = "auto"
    """Type of the weights: auto, bfloat16 or float32."""
    memory: float = 0.3
    """Share of a GPU's memory; on CPU the KV cache in GiB."""
    threads: int = 1
    """CPU threads of a worker."""
    eager: bool = False
    """No compilation and no CUDA graphs: starts in seconds."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.threads < 1 or self.memory <= 0 or self.max_length < 0:
            raise ValueError("workers and threads must be at least 1, memory above 0, max_length at least 0 (0 = the model's own)")
        if not (self.model / "config.json").is_file():
            raise ValueError(f"{self.model} is no model folder (it has no config.json); name one that a run has exported")


def _gpus() -> int:
    from torch.cuda import device_count

    return device_count()


def reserve_port() -> socket.socket:
    """A free port of loopback, bound and not listened on. While it is open the kernel gives the port to nobody who asks for just any (a
    client's end of a connection takes one too, and a server loads for minutes before it binds); a server that names it (SO_REUSEADDR)
    gets it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _runs(group: int) -> bool:
    """Whether a process of the group does; zombies do not, whom init may collect late. Not our child alone: that is the server's guard."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if int(its) == group and state not in "ZX":
            return True
    return False


class Worker:
    """One server process on a port that it keeps."""

    def __init__(self, settings: Serving, number: int, token: str, folder: Path, sleeps: bool = False) -> None:
        self.settings, self.number, self.sleeps, self.held = settings, number, sleeps, reserve_port()
        self.port: int = self.held.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        self.log = folder / f"genrm-{number}.log"
        self.endpoint = Endpoint(self.url, settings.name)
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self.loading = False
        """Started, and has not generated yet."""
        self.healthy = 0.0
        """When it last generated a token (`time.monotonic`)."""
        self._token = token

    def command(self) -> list[str]:
        """vLLM's API server; `--generation-config vllm`: the folder's sampling defaults would be added to what the judge asks for."""
        s = self.settings
        server = "vllm.entrypoints.openai.api_server" if _gpus() else "soundrl.genrm.api_server"
        command = [sys.executable, "-m", server, "--model", str(s.model), "--served-model-name", s.name]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", s.dtype, "--generation-config", "vllm"]
        command += ["--middleware", "soundrl.genrm.bearer.RequireBearer", *(["--enable-sleep-mode"] if self.sleeps else [])]
        command += ["--disable-uvicorn-access-log", "--gpu-memory-utilization", str(s.memory if _gpus() else 0.3)]
        command += ["--max-model-len", str(s.max_length)] if s.max_length else []
        if not _gpus():
            # A seeded request whose prompt is cut into chunks ends vLLM's CPU engine: "CPU Generator does not use offset".
            longest = s.max_length or int(json.loads((s.model / "config.json").read_text()).get("max_position_embeddings", 0))
            command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(longest, LEAST_BATCHED_TOKENS))]
            command += ["--kv-cache-memory-bytes", str(int(s.memory * 2**30))]  # filled with zeros as the server starts
        return [*command, "--enforce-eager"] if s.eager else command

    def environment(self) -> dict[str, str]:
        """The caller's, without torchrun's (vLLM would take part in its process group), and with the token."""
        drop = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING")
        kept = {key: value for key, value in os.environ.items() if key not in drop and not key.startswith("TORCHELASTIC_")}
        own = {
            "VLLM_API_KEY": self._token,
            "VLLM_SERVER_DEV_MODE": str(int(self.sleeps)),  # the routes of sleep, and others that nobody needs
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self.settings.threads),
        }
        if _gpus():
            own["CUDA_VISIBLE_DEVICES"] = str(self.number % _gpus())
        else:
            own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": str(int(self.settings.eager))}
            # The model in the engine's own process: one apart is polled without rest for a second after every message, from both ends,
            # on cores that the trainer wants.
            own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return kept | {"VLLM_LOGGING_LEVEL": "WARNING"} | own

    def start(self) -> None:
        with self.log.open("ab") as sink:
            # A session of its own: the server's children end with it, and an interrupt from the keyboard is ours to handle. The pipe
            # to its guard ends when this process does, in whatever way.
            guarded = [sys.executable, "-P", str(Path(__file__).with_name("guard.py")), *self.command()]
            self.process = subprocess.Popen(
                guarded, env=self.environment(), stdin=subprocess.PIPE, stdout=sink, stderr=sink, start_new_session=True
            )

    def stop(self) -> None:
        """Ask the whole session to end, then kill it; nobody of it runs afterwards: whoever comes next needs its port and its memory."""
        if self.process is None:
            return
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            end = time.monotonic() + patience
            while (left := _runs(self.process.pid)) and time.monotonic() < end:
                time.sleep(0.02)
            if not left:
                break
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def fault(self) -> Failure | TimeoutError | None:
        """None = healthy, by a real generation of one token."""

        async def probe() -> None:
            async with asyncio.timeout(PROBE_SECONDS):
                await self.endpoint.probe()

        try:
            asyncio.run(probe())
        except (Failure, TimeoutError) as error:
            return error
        self.healthy, self.restarts, self.loading = time.monotonic(), 0, False
        return None

    async def obeys(self, order: str) -> bool:
        """Whether it has done what is asked of it (`sleep?level=1`, `wake_up`) within `ORDER_SECONDS`."""
        try:
            async with asyncio.timeout(ORDER_SECONDS):
                status, _, _ = await self.endpoint.exchange("POST", f"{self.root}/{order}", None)
                return status == 200
        except (Failure, TimeoutError):
            return False

    def last_words(self) -> str:
        """The last line of its log that says something."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return ascii(lines[-1])[:200] if lines else "it said nothing"


class JudgeServers:
    """Starts workers at once and watches them from a thread; `urls` are ready after `wait()`. `sleeps`: they can `sleep()` and `wake()`,
    on GPUs alone.

    >>> with JudgeServers(Serving(model=Path("models/genrm"), workers=2), logs=Path("runs/x")) as servers:
    ...     servers.wait()
    ...     EndpointJudge(servers.urls, "genrm")
    """

    def __init__(self, settings: Serving, logs: Path | None = None, sleeps: bool = False) -> None:
        # The judge's connections read it from the environment of this process.
        token = os.environ.setdefault(TOKEN_ENV, secrets.token_urlsafe(24))
        self.settings = settings
        folder = logs or Path(tempfile.mkdtemp(prefix="genrm-"))
        folder.mkdir(parents=True, exist_ok=True)
        self.workers = [Worker(settings, number, token, folder, sleeps) for number in range(settings.workers)]
        self.started = 0
        """Processes started so far, restarts included."""
        self.asleep = False
        self._looking = threading.Lock()
        """Held while workers are looked after, so that nobody is asked or started while they fall asleep."""
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="genrm-watch", daemon=True)
        for worker in self.workers:
            self._start(worker)

    def __enter__(self) -> JudgeServers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def urls(self) -> Sequence[str]:
        return [worker.url for worker in self.workers]

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Until every worker has generated a token; then they are watched. Raises `ServeError` with the last line of the log of one that
        has ended or is not ready in time, and `ValueError` where one refuses the very question (no chat template)."""
        end = time.monotonic() + seconds
        for worker in self.workers:
            while (fault := worker.fault()) is not None:
                if isinstance(fault, Failure) and not fault.retry:  # no patience helps
                    asyncio.run(worker.endpoint.check())  # raises, and says why
                if not worker.alive:
                    raise ServeError(f"the judge's server ended with status {self._status(worker)}: {worker.last_words()} ({worker.log})")
                if time.monotonic() > end:
                    raise ServeError(f"the judge's server is not ready after {seconds:.0f} s: {worker.last_words()} ({worker.log})")
                time.sleep(0.25)
        if not self._watcher.is_alive():
            self._watcher.start()

    def sleep(self) -> None:
        """Every worker gives its GPU memory back, or is killed: afterwards others may take it. Nothing may be under way."""
        with self._looking:
            for worker, obeyed in zip(self.workers, self._order("sleep?level=1"), strict=True):
                if not obeyed:
                    log.warning("judge %s does not fall asleep: killed until it is needed again (%s)", worker.url, worker.log)
                    worker.stop()
            self.asleep = True

    def wake(self, seconds: float = START_SECONDS) -> None:
        """Until every worker has generated a token. One that does not wake is started again; one that does not come back in `seconds` is
        named in a warning and left to the watch, as any that dies: the pool goes on without it."""
        with self._looking:
            for worker, obeyed in zip(self.workers, self._order("wake_up"), strict=True):
                worker.healthy = time.monotonic()
                if not obeyed:
                    self._start_again(worker)
            self.asleep = False
        end = time.monotonic() + seconds
        for worker in self.workers:
            while worker.fault() is not None:
                if time.monotonic() > end or (not worker.alive and worker.restarts == MAX_RESTARTS):
                    log.warning("judge %s has not woken up: %s (%s)", worker.url, worker.last_words(), worker.log)
                    break
                time.sleep(0.25)

    def close(self) -> None:
        """End all processes. May be called twice."""
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for worker in self.workers:
            worker.stop()
            worker.held.close()

    def _start(self, worker: Worker) -> None:
        worker.start()
        worker.healthy, worker.loading = time.monotonic(), True
        self.started += 1

    def _start_again(self, worker: Worker) -> None:
        if worker.restarts == MAX_RESTARTS:
            return  # the pool has ejected it, and the run stops where no judge is left
        worker.restarts += 1
        log.warning("judge %s %s: started again (%s)", worker.url, "is stuck" if worker.alive else "has died", worker.log)
        worker.stop()
        self._start(worker)

    def _order(self, order: str) -> list[bool]:
        async def all_at_once() -> list[bool]:
            return await asyncio.gather(*(worker.obeys(order) for worker in self.workers))

        return asyncio.run(all_at_once())

    @staticmethod
    def _status(worker: Worker) -> int | None:
        return worker.process.returncode if worker.process is not None else None

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with self._looking:
                for worker in self.workers if not self.asleep else ():
                    patience = START_SECONDS if worker.loading else SICK_SECONDS
                    if not (worker.alive and (worker.fault() is None or time.monotonic() - worker.healthy < patience)):
                        self._start_again(worker)


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO)
    with JudgeServers(tyro.cli(Serving)) as servers:
        servers.wait()
        print(f"--genrm.urls {' '.join(servers.urls)} --genrm.model {servers.settings.name}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})

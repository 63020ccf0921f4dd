"""One judge server: how it is served, and its process, on a port that it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from soundrl.genrm.pool.address import own_host
from soundrl.genrm.pool.endpoint import Endpoint, Failure
from soundrl.genrm.prompts import told_by
from soundrl.genrm.serve.machine import (
    LONGEST,
    MARGIN,
    check_heads,
    group_runs,
    held_length,
    positions,
    reserve_port,
    served_length,
    visible_gpus,
)

START_SECONDS = 600.0  # a large model loads for minutes
SICK_SECONDS = 120.0  # without a token for us or anybody: behind a full queue our own question may wait for longer
PROBE_SECONDS = 20.0
ORDER_SECONDS = 120.0
"""To fall asleep or wake up: weights cross the bus in seconds, 64 GB of them in half a minute where host memory is slow."""
MAX_RESTARTS = 5
LEAST_BATCHED_TOKENS = 8192
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CAUSE = re.compile(r"\b\w*(?:Error|Exception): ")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """On what a folder is served: settings of every command that serves one."""

    workers: int = 1
    """Server processes; on a machine with GPUs each takes the next `tensor_parallel` ones of `CUDA_VISIBLE_DEVICES`."""
    tensor_parallel: int = 1
    """GPUs of one worker, which divide its weights and its attention heads."""
    dtype: str = "auto"
    """Type of the weights: auto, bfloat16 or float32."""
    eager: bool = False
    """No compilation and no CUDA graphs: starts in seconds."""

    def serving(self, model: Path, max_length: int, **more: Any) -> Serving:
        return Serving(model=model, max_length=max_length, **more, **{field.name: getattr(self, field.name) for field in fields(Workers)})


@dataclass(frozen=True, kw_only=True)
class Serving(Workers):
    """How a judge is served."""

    model: Path
    """Model folder (safetensors; no code of its own is run)."""
    name: str = "genrm"
    """Its name on the wire; replies under another name are refused, so that a version in it is checked with every reply."""
    max_length: int = 0
    """Longest prompt + critique, in tokens; 0 = 22528 (5120 + 16384 and the judge's own words), or what the model takes or the memory
    holds, where that is less."""
    memory: float = 0.3
    """Share of a GPU's memory; on CPU the KV cache in GiB."""
    threads: int = 1
    """CPU threads of a worker."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs a token in $SOUNDRL_GENRM_TOKEN."""
    port: int = 0
    """Port of the first worker, the others follow; 0 = free ones."""

    def __post_init__(self) -> None:
        if min(self.workers, self.threads, self.tensor_parallel) < 1 or self.memory <= 0 or self.max_length < 0:
            raise ValueError("workers, threads and tensor_parallel must be at least 1, memory above 0, max_length at least 0 (0 = planned)")
        if not (self.model / "config.json").is_file():
            raise ValueError(f"{self.model} is no model folder (it has no config.json); name one that a run has exported")
        check_heads(self.model, self.tensor_parallel)

    def planned(self) -> Serving:
        """With its `max_length`. Raises `ValueError` where memory holds next to nothing."""
        if self.max_length:
            return self
        wanted = served_length(self.model, *LONGEST)
        held = held_length(self.model, self.memory, self.dtype, visible_gpus()[: self.tensor_parallel])
        if held < min(wanted, MARGIN):
            raise ValueError(
                f"memory {self.memory} leaves a KV cache of {held:.0f} tokens for {self.model}: raise --memory or --tensor-parallel, "
                "or serve a smaller judge"
            )
        return replace(self, max_length=int(min(wanted, held)))


class Worker:
    """One server process on a port that it keeps."""

    def __init__(self, settings: Serving, number: int, token: str, folder: Path, sleeps: bool = False) -> None:
        self.settings, self.number, self.sleeps, gpus, parallel = settings, number, sleeps, visible_gpus(), settings.tensor_parallel
        if parallel > 1 and (not gpus or gpus[0].startswith("MIG-")):
            raise ValueError(f"genrm.workers: {parallel} GPUs a server need whole GPUs, and there are none here: set 1")
        self.gpus = gpus[number * parallel : (number + 1) * parallel]
        if gpus and len(self.gpus) < parallel:
            raise ValueError(
                f"genrm.workers {settings.workers}, but there are {len(gpus)} GPUs ({', '.join(gpus)}): each worker takes "
                f"{'one' if parallel == 1 else parallel}; start fewer, or name more in CUDA_VISIBLE_DEVICES"
            )
        self.held = reserve_port(settings.host, settings.port and settings.port + number)
        self.port: int = self.held.getsockname()[1]
        host = own_host(settings.host) or settings.host
        self.root = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.url = f"{self.root}/v1"
        self.log = folder / f"genrm-{number}.log"
        self.endpoint = Endpoint(self.url, settings.name, allow_http=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0  # processes so far
        self.restarts = 0  # in a row, without a generation between them
        self.until = 0.0  # when it counts as stuck (`time.monotonic`)
        self.made = math.nan  # tokens generated, as it last said
        self._token = token

    def command(self) -> list[str]:
        """vLLM's API server; `--generation-config vllm`: the folder's sampling defaults would be added to what the judge asks for."""
        s = self.settings
        server = "vllm.entrypoints.openai.api_server" if self.gpus else "soundrl.genrm.serve.api_server"
        told = told_by(s.model)  # by the second name whoever asks knows in which words
        names = [s.name, *([f"{s.name}@{told}"] if told else [])]
        command = [sys.executable, "-m", server, "--model", str(s.model), "--served-model-name", *names]
        command += ["--host", s.host, "--port", str(self.port), "--dtype", s.dtype, "--generation-config", "vllm"]
        command += ["--middleware", "soundrl.genrm.serve.bearer.RequireBearer", *(["--enable-sleep-mode"] if self.sleeps else [])]
        command += ["--disable-uvicorn-access-log", "--gpu-memory-utilization", str(s.memory if self.gpus else 0.3)]
        command += ["--max-model-len", str(s.max_length)] if s.max_length else []
        command += ["--tensor-parallel-size", str(s.tensor_parallel)] if s.tensor_parallel > 1 else []
        if not self.gpus:
            # A seeded request whose prompt is cut into chunks ends vLLM's CPU engine: "CPU Generator does not use offset".
            longest = max(s.max_length or positions(s.model), LEAST_BATCHED_TOKENS)
            command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(longest)]
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
            # vLLM's process group of one would listen at the address that ranks of a run show to other machines.
            "GLOO_SOCKET_IFNAME": "lo",
            "VLLM_HOST_IP": "127.0.0.1",
        }
        if self.gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        else:
            own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": str(int(self.settings.eager))}
            # The model in the engine's own process: one apart is polled without rest for a second after every message, from both ends,
            # on cores that the trainer wants.
            own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return kept | {"VLLM_LOGGING_LEVEL": "WARNING"} | own

    def start(self) -> None:
        self.started, self.until = self.started + 1, time.monotonic() + START_SECONDS
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
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 5.0
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            while (runs := group_runs(self.process.pid)) and time.monotonic() < end:
                time.sleep(0.02)
            if not runs:
                break
        self.process.wait()

    def start_again(self) -> None:
        """Not one that dies whenever it is started: the pool has ejected it, and the run stops where no judge is left."""
        if self.restarts < MAX_RESTARTS:
            self.restarts += 1
            log.warning("judge %s %s: started again (%s)", self.url, "is stuck" if self.alive else "has died", self.log)
            self.stop()
            self.start()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def fault(self) -> Failure | TimeoutError | None:
        """None = healthy, by a real generation of one token."""
        try:
            asyncio.run(asyncio.wait_for(self.endpoint.probe(), PROBE_SECONDS))
        except (Failure, TimeoutError) as error:
            return error
        self.well()
        return None

    def awaited(self, end: float, restarts: int = 0) -> Failure | TimeoutError | None:
        """None as soon as it has generated a token; its fault at `end` (`time.monotonic`), or where no patience helps: it refuses the very
        question, or has ended and was started again `restarts` times."""
        while (fault := self.fault()) is not None:
            refuses = isinstance(fault, Failure) and not fault.retry
            if refuses or time.monotonic() > end or (not self.alive and self.restarts >= restarts):
                return fault
            time.sleep(0.25)
        return None

    def look(self) -> None:
        """Put off the time at which it counts as stuck, where it generates: a token for us or, where our question waits in a full queue,
        more for others than when last asked."""
        if self.alive and self.fault() is not None:
            before, self.made = self.made, self._made()
            if self.made > before:
                self.well()

    def well(self) -> None:
        self.until, self.restarts = time.monotonic() + SICK_SECONDS, 0

    def _made(self) -> float:
        """Tokens generated since its start, by vLLM's counter; NaN where it does not say."""
        said = (self._exchange("GET", "metrics", PROBE_SECONDS) or b"").decode(errors="replace")
        counts = re.findall(r"^vllm:generation_tokens_total.* (\S+)$", said, re.MULTILINE)
        return sum(map(float, counts)) if counts else math.nan

    def obeys(self, order: str) -> bool:
        """Whether it has done what is asked of it (`sleep?level=1`, `wake_up`) within `ORDER_SECONDS`."""
        return self._exchange("POST", order, ORDER_SECONDS) is not None

    def _exchange(self, method: str, route: str, seconds: float) -> bytes | None:
        try:
            status, _, content = asyncio.run(asyncio.wait_for(self.endpoint.exchange(method, f"{self.root}/{route}", None), seconds))
        except (Failure, TimeoutError):
            return None
        return content if status == 200 else None

    def last_words(self) -> str:
        """The last line of its log that says something; of errors the last that is a cause."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        causes = [line for line in lines if _CAUSE.search(line) and "root cause" not in line]
        return ascii((causes or lines)[-1])[:300] if lines else "it said nothing"

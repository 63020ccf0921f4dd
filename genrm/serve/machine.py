"""What a served judge takes of its machine and of its folder: GPUs, a port, processes, and how long a text may be."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

# Where config.json says how long a text may be; vLLM takes the smallest as well.
_LENGTHS = "max_position_embeddings n_positions max_seq_len seq_length model_max_length max_sequence_length max_seq_length seq_len".split()
MARGIN = 1024  # tokens for the judge's own words around a solution


def positions(folder: Path) -> int:
    """Tokens of the longest text that the folder's model takes, by its config.json; 0 where that does not say, or is not there."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    inner = config.get("text_config") or config
    return min((inner[key] for key in _LENGTHS if isinstance(inner.get(key), int)), default=0)


def served_length(folder: Path, prompt: int, critique: int) -> int:
    """`max_length` of a server for prompts and critiques of so many tokens, at most the model's own: a KV cache for 262,144 tokens, which
    Qwen3-4B-Instruct-2507 says it takes, is 36 GiB, and vLLM does not start with less."""
    wanted, own = prompt + critique + MARGIN, positions(folder)
    return min(wanted, own) if own else wanted


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them to a child: indices, UUIDs or MIG instances of the caller's
    own list where there is one. Raises `ValueError` where that list leaves none of a CUDA build's GPUs."""
    import torch

    count, listed = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(index) for index in range(count)]
    names = [name.strip() for name in listed.split(",")]
    end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))  # CUDA reads no further
    if torch.version.cuda and (count == 0 or end == 0):
        raise ValueError(f"CUDA_VISIBLE_DEVICES is {listed!r}, which leaves no GPU to serve a judge on: name one in it, or unset it")
    # A process sees one MIG instance at most, however many are named.
    return names[:end] if names[0].startswith("MIG-") else names[: min(end, count)]


def reserve_port(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A port of `host` (0 = a free one), bound and not listened on. While it is open the kernel gives the port to nobody who asks for just
    any (a client's end of a connection takes one too, and a server loads for minutes before it binds); a server that names it
    (SO_REUSEADDR) gets it. Raises `ValueError` where it is taken."""
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise ValueError(f"--host {host} --port {port} cannot be listened on ({error.strerror}): name another") from error
    return held


def group_runs(group: int) -> bool:
    """Whether a process of the group does; zombies do not, whom init may collect late. Not our child alone: that is the server's guard."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if int(its) == group and state not in "ZX":
            return True
    return False

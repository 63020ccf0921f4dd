"""What a served judge takes of its machine and of its folder: GPUs, memory, a port, processes, and how long a text may be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# Where config.json says how long a text may be; vLLM takes the smallest as well.
_LENGTHS = "max_position_embeddings n_positions max_seq_len seq_length model_max_length max_sequence_length max_seq_length seq_len".split()
MARGIN = 1024  # tokens for the judge's own words around a solution
LONGEST = (5120, 16_384)
"""Prompt and critique, in tokens, where nobody says how long they are: those of arXiv 2510.22543 (Tab. 1) and its released scripts."""
BLOCK = 128  # tokens of the KV cache that vLLM gives out at once, at most
_WORK = 3 * 2**30  # bytes of a GPU's share for activations, logits and CUDA graphs: the plan's estimate for 8,192 batched tokens of 8B


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of the text model where there are several; empty where it is not there."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    return config.get("text_config") or config


def positions(folder: Path) -> int:
    """Tokens of the longest text that the folder's model takes, by its config.json; 0 where that does not say, or is not there."""
    config = config_of(folder)
    return min((config[key] for key in _LENGTHS if isinstance(config.get(key), int)), default=0)


def cached_bytes(folder: Path, size: int, tensor_parallel: int = 1) -> int:
    """Bytes of the KV cache that a token takes on each GPU, `size` of them an element: key and value of every layer, the KV heads divided
    (never below one). 0 where config.json does not say."""
    config = config_of(folder)
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if not (heads and hidden and config.get("num_hidden_layers")):
        return 0
    kept = config.get("num_key_value_heads") or heads
    return 2 * config["num_hidden_layers"] * max(1, kept // tensor_parallel) * (config.get("head_dim") or hidden // heads) * size


def check_heads(folder: Path, tensor_parallel: int) -> None:
    """`ValueError` where so many GPUs cannot divide the model's attention heads."""
    heads = config_of(folder).get("num_attention_heads") or tensor_parallel
    if heads % tensor_parallel:
        raise ValueError(
            f"genrm.tensor_parallel {tensor_parallel} does not divide the {heads} attention heads of {folder}; set one that does"
        )


def held_length(folder: Path, memory: float, dtype: str, gpus: list[str]) -> float:
    """Tokens that the KV cache of a server of the folder's model holds, in whole blocks: of `memory` GiB on CPU, else of that share of each
    of its `gpus` beside weights and work. Infinite where config.json does not say what a token takes."""
    size, parallel = 4 if dtype == "float32" else 2, max(1, len(gpus))  # vLLM's `auto` makes 2 bytes of 4
    room = memory * 2**30
    if gpus:
        config = config_of(folder)
        stored = 4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) * size / stored
        room = memory * gpu_bytes(gpus[0]) - weights / parallel - _WORK
    each = cached_bytes(folder, size, parallel)
    return max(0, int(room / each) // BLOCK - 1) * BLOCK if each else float("inf")


def gpu_bytes(name: str) -> int:
    """Memory of a GPU, as `visible_gpus` names it; asked in a process of its own, as whoever asks holds some of it until the end."""
    code = "import torch; print(torch.cuda.get_device_properties(0).total_memory)"
    own = os.environ | {"CUDA_VISIBLE_DEVICES": name}
    return int(subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True).stdout)


def served_length(folder: Path, prompt: int, critique: int, own: int | None = None) -> int:
    """`max_length` of a server for prompts and critiques of so many tokens, at most the model's own (`positions` unless given): a KV cache
    for 262,144 tokens, which Qwen3-4B-Instruct-2507 says it takes, is 36 GiB, and vLLM does not start with less."""
    wanted, own = prompt + critique + MARGIN, positions(folder) if own is None else own
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

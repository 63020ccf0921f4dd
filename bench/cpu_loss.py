"""What a loss on CPU costs, in time and memory: ours against plain torch, Inductor, Liger-Kernel and TRL, forward and backward.

    python bench/cpu_loss.py [--trl PATH]

loss    clipped policy loss, dhidden and dweight from hidden states and LM head, with all rows and with half of the advantages 0
logits  log-probability and dlogits from [T, V] logits, with all rows and with half of the targets ignored (where that is known)

One thread. ms is user + system CPU time of one repetition, which another process on the machine disturbs less than the clock; providers
take turns in an order that rotates, and is reversed every other round. peak_mib counts what torch allocates in one more repetition,
results included, inputs not. PATH is a folder with TRL in it (pip install --target). Where the processor has no instructions for bf16,
torch's own products take 100 times those of fp32: there bf16 has T / 16 rows, for everybody. 16-bit inputs are compared with fp32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import MIB, Provider, Results, Work, check
from head import RULE, Head, grpo_loss
from head_providers import liger_fused_grpo, liger_logprob, torch_logprob, trl_logprob, with_gradients
from record import ROOT, Row, machine
from torch import Tensor

from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.logprob import selective_logprob
from soundrl.kernels.policy_loss import policy_loss

SHAPES = {"smollm2": (2048, 576, 49152), "wide": (4096, 1024, 32768), "small": (32, 16, 500)}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def make(shape: tuple[int, int, int], dtype: torch.dtype, half: bool) -> Head:
    """Logits of standard deviation 2; ratios within the clip's bounds."""
    (tokens, hidden, vocabulary), rng = shape, torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(tokens, hidden, generator=rng).to(dtype)
    weight_VH = torch.randn(vocabulary, hidden, generator=rng).mul_(2 * hidden**-0.5).to(dtype)
    targets_T = torch.randint(vocabulary, (tokens,), generator=rng)
    advantages_T = torch.randn(tokens, generator=rng) + 0.5
    if half:
        advantages_T[torch.randperm(tokens, generator=rng)[: tokens // 2]] = 0.0
    with torch.no_grad():
        parts = zip(hidden_TH.float().split(128), targets_T.split(128), strict=True)
        exact_T = torch.cat([torch_logprob(h, weight_VH.float(), t) for h, t in parts])
    old_T = exact_T + 0.2 * torch.rand(tokens, generator=rng) - 0.1
    return Head(hidden_TH=hidden_TH, weight_VH=weight_VH, targets_T=targets_T, advantages_T=advantages_T, old_logprob_T=old_T)


def inductor(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def loss_providers(head: Head) -> list[Provider]:
    count, rows = float(len(head.targets_T)), (head.targets_T, head.old_logprob_T, head.advantages_T, None)

    def on_top(logprob: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda h, w: grpo_loss(logprob(h, w)[0].float(), head.old_logprob_T, head.advantages_T, count)

    def plain(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        return grpo_loss(torch_logprob(hidden_TH, weight_VH, head.targets_T), head.old_logprob_T, head.advantages_T, count)

    def in_two(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        logprob_T = linear_logprob(hidden_TH, weight_VH, head.targets_T)[0]
        return policy_loss(logprob_T, head.old_logprob_T, head.advantages_T, None, count, rule=RULE)[0]

    asked_T = torch.where(head.advantages_T == 0, -100, head.targets_T)  # for who wants no log-probability of dead rows

    def fewer(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        return linear_policy_loss(hidden_TH, weight_VH, asked_T, *rows[1:], count, rule=RULE)[0]

    return [
        Provider("ours", lambda: with_gradients(head, lambda h, w: linear_policy_loss(h, w, *rows, count, rule=RULE)[0])),
        *([Provider("ours, dead rows as -100", lambda: with_gradients(head, fewer))] if bool((asked_T < 0).any()) else []),
        Provider("ours, logprob then loss", lambda: with_gradients(head, in_two)),
        Provider("torch", lambda: with_gradients(head, plain)),
        Provider("torch.compile", lambda: with_gradients(head, inductor(plain))),
        Provider("liger fused GRPO", lambda: liger_fused_grpo(head)),
        Provider("liger scaled CE", lambda: with_gradients(head, on_top(liger_logprob(head, entropy=False)))),
        Provider("trl chunked", lambda: with_gradients(head, on_top(trl_logprob(head, ())))),
    ]


def logits_providers(head: Head) -> list[Provider]:
    weights_T, targets_T = head.advantages_T, head.targets_T
    given_T = torch.where(weights_T == 0, -100, targets_T)
    logits_TV = torch.empty(len(targets_T), len(head.weight_VH), dtype=head.hidden_TH.dtype)
    for out_cV, hidden_cH in zip(logits_TV.split(128), head.hidden_TH.split(128), strict=True):
        out_cV.copy_(hidden_cH.float() @ head.weight_VH.float().t())

    def work(logprob: Callable[[Tensor], Tensor], fresh: bool = False) -> Work:
        def step(x_TV: Tensor) -> Results:
            loss = logprob(x_TV) @ weights_T
            return {"loss": loss.detach(), "dlogits": torch.autograd.grad(loss, x_TV)[0]}

        return Work(step, lambda: (logits_TV.clone() if fresh else logits_TV.detach()).requires_grad_())

    def plain(x_TV: Tensor) -> Tensor:
        return x_TV.float().log_softmax(-1).gather(-1, targets_T[:, None]).squeeze(-1)

    def trl() -> Work:
        from trl.trainer.utils import selective_log_softmax  # pyright: ignore[reportMissingImports]

        return work(lambda x_TV: selective_log_softmax(x_TV, targets_T).float())

    return [
        Provider("ours", lambda: work(lambda x_TV: selective_logprob(x_TV, given_T).logprob)),
        Provider("ours, in place", lambda: work(lambda x_TV: selective_logprob(x_TV, given_T, inplace_backward=True).logprob, fresh=True)),
        Provider("torch", lambda: work(plain)),
        Provider("torch.compile", lambda: work(inductor(plain))),
        Provider("trl selective", trl),
    ]


def cpu_ms(work: Work) -> float:
    state, before = work.before(), resource.getrusage(resource.RUSAGE_SELF)
    work.step(state)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def peak_mib(work: Work) -> float:
    state = work.before()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work.step(state)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, now)
    return round(peak / MIB, 2)


def measure(providers: list[Provider], row: Callable[[str], Row], tolerance: float, reference: Results, rounds: int) -> list[Row]:
    rows, ready, times = {}, {}, {}
    for provider in providers:
        rows[provider.name] = made = row(provider.name)
        try:
            work = provider.build()
            check(work, provider, reference, made, tolerance, on_gpu=False)
            if made.error is None:
                made.peak_mib, ready[provider.name], times[provider.name] = peak_mib(work), work, []
        except Exception as error:  # noqa: BLE001 - other libraries raise what they like; the row carries it
            made.error = f"{type(error).__name__}: {error}".strip()[:500]
    names = list(ready)
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for name in order if turn % 2 == 0 else order[::-1]:
            times[name].append(cpu_ms(ready[name]))
    for name, ms in times.items():
        quantiles = torch.tensor(ms, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
        rows[name].ms, rows[name].p20, rows[name].p80 = (round(x, 3) for x in quantiles.tolist())
        rows[name].repeats, rows[name].timing = len(ms), "user + system CPU time"
    return list(rows.values())


def table(rows: list[Row]) -> str:
    """Ratios are ours over theirs: below 1 is better than they are."""
    ours = rows[0]
    lines = [
        f"{ours.mode}  {ours.shape}  {ours.dtype}",
        f"  {'provider':26}{'ms':>10}{'p20':>10}{'p80':>10}{'MiB':>9}   ours ÷ it: time, memory",
    ]
    for row in rows:
        if row.error or row.ms is None or row.peak_mib is None or ours.ms is None or ours.peak_mib is None:
            lines.append(f"  {row.provider:26}{(row.error or 'not measured').splitlines()[0][:100]}")
            continue
        ratios = f"{ours.ms / row.ms:8.2f}{ours.peak_mib / row.peak_mib:8.2f}"
        lines.append(f"  {row.provider:26}{row.ms:10.1f}{row.p20:10.1f}{row.p80:10.1f}{row.peak_mib:9.1f}{ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="folder that TRL is installed in")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", default=["smollm2", "wide"], choices=list(SHAPES))
    parser.add_argument("--types", nargs="*", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--modes", nargs="*", default=["loss", "logits"], choices=["loss", "logits"])
    parser.add_argument("--tokens", type=int, help="rows, instead of the shape's")
    parser.add_argument("--skip", nargs="*", default=[], metavar="PROVIDER")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "bench" / "results")) / "cpu_loss.jsonl")
    chosen = parser.parse_args()
    sys.path += [chosen.trl] if chosen.trl else []  # behind this environment: its torch is not TRL's folder's
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    stamp = machine("cpu") | {"capability": capability, "bf16 instructions": has_bf16}
    print(f"cpu_loss on {stamp['device']}, {capability}, torch {stamp['torch']}, commit {stamp['commit']}", flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for shape in chosen.shapes:
        for kind in chosen.types:
            dtype, (tokens, hidden, vocabulary) = TYPES[kind], SHAPES[shape]
            tokens = chosen.tokens or (tokens if dtype == torch.float32 or has_bf16 else max(8, tokens // 16))
            for half in (False, True):
                head = make((tokens, hidden, vocabulary), dtype, half)
                exact = dataclasses.replace(head, hidden_TH=head.hidden_TH.float(), weight_VH=head.weight_VH.float())
                for mode in chosen.modes:
                    build = loss_providers if mode == "loss" else logits_providers
                    providers = [p for p in build(head) if p.name not in chosen.skip]
                    truth = next(p for p in build(exact) if p.name == "torch").build()
                    if mode == "logits" and dtype != torch.float32:
                        truth = next(p for p in build(head) if p.name == "torch").build()  # logits rounded to 16 bits are the input
                    reference = truth.step(truth.before())
                    row = lambda name, mode=mode, head=head, half=half, kind=kind: Row(  # noqa: E731
                        bench="cpu_loss",
                        mode=mode + (", half of the rows dead" if half else ""),
                        provider=name,
                        shape=head.shape,
                        dtype=kind,
                    )
                    load = os.getloadavg()[0]
                    rows = measure(providers, row, TOLERANCE[dtype], reference, chosen.rounds)
                    del reference, truth
                    with chosen.out.open("a") as file:
                        for one in rows:
                            one.stamp = stamp | {"load": [round(load, 2), round(os.getloadavg()[0], 2)]}
                            file.write(json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n")
                    print(table(rows), flush=True)


if __name__ == "__main__":
    main()

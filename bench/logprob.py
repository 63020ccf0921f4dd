"""Log-probability and entropy from [T, V] logits, and the clipped loss on top, forward and backward.

    python bench/logprob.py

forward   both, without gradient; the floor is one read of the logits at the bandwidth of a copy timed in the same run
backward  dlogits from fixed gradients of both (only the backward pass is timed); the floor is one read and one write
grpo      loss and dlogits from logits; the floor is two reads and one write

Backward passes of soundrl, Liger-Kernel and QuACK write over the logits; each repetition gets a fresh copy, made outside the timing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import Case, Plan, Provider, Results, Work, arguments, compiled, copy_ceiling, run
from head import RULE, TOLERANCE, grpo_loss
from torch import Tensor

from soundrl.kernels.logprob import selective_logprob
from soundrl.kernels.policy_loss import policy_loss

SHAPE = (8192, 151936)
SMALL = (24, 500)
SEQUENCES = 8


class Rows:
    """Logits and what the passes need, the same for every provider. Rows T = B·L, sequence after sequence."""

    def __init__(self, plan: Plan) -> None:
        self.tokens, self.vocabulary = SMALL if plan.small else SHAPE
        self.dtype = torch.float32 if plan.small else torch.bfloat16
        self.plan = plan
        rng = torch.Generator(plan.device).manual_seed(0)
        draw = lambda *size: torch.randn(*size, generator=rng, device=plan.device)  # noqa: E731
        # Liger-Kernel reads all but the last row of [B, L+1, V]: one row more than is used.
        self.longer_logits = torch.randn(self.tokens + 1, self.vocabulary, generator=rng, device=plan.device, dtype=self.dtype).mul_(2)
        self.logits_TV = self.longer_logits[:-1]
        self.targets_T = torch.randint(self.vocabulary, (self.tokens,), generator=rng, device=plan.device)
        self.grad_logprob_T, self.grad_entropy_T = draw(self.tokens), draw(self.tokens)
        # In its loss each sequence's last row is left out: the others get advantage 0 there, which is the same.
        self.advantages_B = draw(SEQUENCES) + 2.0
        self.advantages_T = self.advantages_B.repeat_interleave(self.tokens // SEQUENCES)
        self.advantages_T[self.tokens // SEQUENCES - 1 :: self.tokens // SEQUENCES] = 0.0
        self.count = float(self.tokens - SEQUENCES)
        noise_T = 0.2 * torch.rand(self.tokens, generator=rng, device=plan.device) - 0.1
        self.old_logprob_T = (self.exact(gradient=False)["logprob"] + noise_T).float()

    def fresh(self) -> Tensor:
        return self.logits_TV.clone().requires_grad_()

    def exact(self, gradient: bool = True) -> Results:
        """logprob, entropy; `dlogits` of the fixed gradients and `dlogits_loss` of the loss: fp64, 1 GiB at a time."""
        out: dict[str, list[Tensor]] = {"logprob": [], "entropy": [], "dlogits": [], "loss": [], "dlogits_loss": []}
        for rows in torch.arange(self.tokens).split(max(1, 2**27 // self.vocabulary)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            x_cV = self.logits_TV[part].double().requires_grad_()
            logp_cV = torch.log_softmax(x_cV, -1)
            logprob_c = logp_cV.gather(-1, self.targets_T[part, None]).squeeze(-1)
            entropy_c = -(logp_cV.exp() * logp_cV).sum(-1)
            out["logprob"].append(logprob_c.detach())
            out["entropy"].append(entropy_c.detach())
            if gradient:
                weights = (self.grad_logprob_T[part].double(), self.grad_entropy_T[part].double())
                (slope,) = torch.autograd.grad((logprob_c, entropy_c), x_cV, weights, retain_graph=True)
                loss = grpo_loss(logprob_c, self.old_logprob_T[part].double(), self.advantages_T[part].double(), self.count)
                (loss_slope,) = torch.autograd.grad(loss, x_cV)
                out["dlogits"].append(slope.float())
                out["dlogits_loss"].append(loss_slope.float())
                out["loss"].append(loss.detach()[None])
        whole = {name: torch.cat(parts) for name, parts in out.items() if parts}
        return whole | ({"loss": whole["loss"].sum()} if gradient else {})

    def case(self, mode: str, names: dict[str, str], providers: list[Provider], passes: int) -> Case:
        """`names` picks the exact results: {name of the result: name in `exact`}."""

        def reference() -> Results:
            exact = self.exact(gradient=mode != "forward")
            return {name: exact[source] for name, source in names.items()}

        return Case(
            mode=mode,
            shape={"T": self.tokens, "V": self.vocabulary},
            dtype=self.dtype,
            reference=reference,
            tolerance=TOLERANCE[self.dtype],
            providers=[*providers, copy_ceiling(self.plan.device)],
            moved=float(passes * self.logits_TV.nbytes),
        )


def torch_both(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    logp_TV = torch.log_softmax(logits_TV.float(), -1)
    return logp_TV.gather(-1, targets_T[:, None]).squeeze(-1), -(logp_TV.exp() * logp_TV).sum(-1)


def trl_both() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from trl.kernels import selective_log_softmax_and_entropy  # pyright: ignore[reportMissingImports]

    # It takes [batch, rows, V].
    return lambda x, targets_T: tuple(y[0] for y in selective_log_softmax_and_entropy(x[None], targets_T[None]))  # pyright: ignore


def quack_logprob() -> Callable[[Tensor, Tensor], tuple[Tensor]]:
    from quack.cross_entropy import cross_entropy  # pyright: ignore[reportMissingImports]

    return lambda x, targets_T: (-cross_entropy(x, targets_T, reduction="none", inplace_backward=True),)


def forward(plan: Plan) -> Case | None:
    if not plan.wants("forward"):
        return None
    rows = Rows(plan)

    def work(both: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> Work:
        @torch.no_grad()
        def step(_: Any) -> Results:
            return dict(zip(("logprob", "entropy"), both(rows.logits_TV, rows.targets_T), strict=False))

        return Work(step)

    def liger() -> Work:
        from liger_kernel.ops.grpo_loss import fused_selective_log_softmax

        def step(_: Any) -> Results:
            return {"logprob": fused_selective_log_softmax(rows.longer_logits[None], rows.targets_T[None], temperature=1.0)[0]}

        return Work(step)

    providers = [
        Provider("ours", lambda: work(selective_logprob)),
        Provider("torch", lambda: work(torch_both)),
        Provider("torch.compile", lambda: work(compiled(torch_both, plan.device))),
        Provider("trl fused", lambda: work(trl_both())),
        Provider("quack cross entropy", lambda: work(quack_logprob()), omits=("entropy",)),
        Provider("liger selective", liger, omits=("entropy",)),
    ]
    return rows.case("forward", {"logprob": "logprob", "entropy": "entropy"}, providers, passes=1)


def backward(plan: Plan) -> Case | None:
    if not plan.wants("backward"):
        return None
    rows = Rows(plan)

    def work(both: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> Work:
        def before() -> tuple[tuple[Tensor, ...], Tensor]:
            logits_TV = rows.fresh()
            return both(logits_TV, rows.targets_T), logits_TV

        def step(state: tuple[tuple[Tensor, ...], Tensor]) -> Results:
            outputs, logits_TV = state
            return {"dlogits": torch.autograd.grad(outputs, logits_TV, (rows.grad_logprob_T, rows.grad_entropy_T))[0]}

        return Work(step, before)

    providers = [
        Provider("ours, in place", lambda: work(lambda x, t: selective_logprob(x, t, inplace_backward=True)[:2])),
        Provider("ours", lambda: work(lambda x, t: selective_logprob(x, t)[:2])),
        Provider("torch", lambda: work(torch_both)),
        Provider("torch.compile", lambda: work(compiled(torch_both, plan.device))),
        Provider("trl fused", lambda: work(trl_both())),
    ]
    return rows.case("backward", {"dlogits": "dlogits"}, providers, passes=2)


def grpo(plan: Plan) -> Case | None:
    if not plan.wants("grpo"):
        return None
    rows = Rows(plan)

    def work(loss_of: Callable[[Tensor], Tensor]) -> Work:
        def step(logits_TV: Tensor) -> Results:
            loss = loss_of(logits_TV)
            return {"loss": loss.detach(), "dlogits": torch.autograd.grad(loss, logits_TV)[0]}

        return Work(step, rows.fresh)

    def ours(logits_TV: Tensor) -> Tensor:
        logprob_T, *_ = selective_logprob(logits_TV, rows.targets_T, inplace_backward=True)
        return policy_loss(logprob_T, rows.old_logprob_T, rows.advantages_T, None, rows.count, rule=RULE)[0]

    def on_top(logprob: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], Tensor]:
        return lambda x: grpo_loss(logprob(x, rows.targets_T)[0].float(), rows.old_logprob_T, rows.advantages_T, rows.count)

    def liger() -> Work:
        from liger_kernel.ops.grpo_loss import GrpoLossFunction

        length = rows.tokens // SEQUENCES - 1
        cut = lambda x_T: x_T.view(SEQUENCES, length + 1)[:, :length].contiguous()  # noqa: E731
        mask_BL = torch.ones(SEQUENCES, length, dtype=torch.int64, device=plan.device)

        def loss_of(logits_TV: Tensor) -> Tensor:
            return GrpoLossFunction.apply(
                logits_TV.view(SEQUENCES, length + 1, rows.vocabulary),
                cut(rows.old_logprob_T),
                None,
                cut(rows.targets_T),
                rows.advantages_B,
                mask_BL,
                1.0,
                0.0,
                RULE.clip_low,
                RULE.clip_high,
                True,
                "dapo",
            )[0]

        return work(loss_of)

    providers = [
        Provider("ours", lambda: work(ours)),
        Provider("torch", lambda: work(on_top(torch_both))),
        Provider("torch.compile", lambda: work(on_top(compiled(torch_both, plan.device)))),
        Provider("liger GRPO", liger),
        Provider("trl fused", lambda: work(on_top(trl_both()))),
        Provider("quack cross entropy", lambda: work(on_top(quack_logprob()))),
    ]
    return rows.case("grpo", {"loss": "loss", "dlogits": "dlogits_loss"}, providers, passes=3)


if __name__ == "__main__":
    run("logprob", [forward, backward, grpo], arguments(__doc__))

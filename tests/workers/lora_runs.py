"""Whole runs of the main job with adapters, each a fork: warm start, reference, judge and policy as two adapters of one vLLM, evaluations,
an export; the same killed within a step and stopped within another; and a mixture of experts."""

from pathlib import Path

import killed
import torch
from forks import forked
from tiny import write_tiny

from soundrl.engine import train, weight_sync
from soundrl.engine.environments.arithmetic.arithmetic import Arithmetic
from soundrl.engine.files.adapter_folder import Shape, base_of, write_adapter
from soundrl.engine.files.tensor_file import Layout
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.launch.launch import parse_arguments
from soundrl.fapo.records import Check, Outcome, Prompt, Rollout

weight_sync.PROBE_TOKENS = 16  # as many in all, in fewer turns of decoding
BASE = Path("starts/judge")
SMALL = (
    *("--data.test-rows", 2, "--run.eval-sampling", 2, 1.0, 1.0, "--run.eval-every", 0, "--run.save", 1, 9, 0, "--run.steps", 2),
    *("--rollout.prompts", 4, "--rollout.samples", 4, "--rollout.max-new-tokens", 12, "--optim.minibatch-prompts", 2),
)
JUDGED = (
    *("--model.path", BASE, "--model.max-length", 144, "--model.lora", 6, 12.0, "", "--optim.lr", 5e-3, "--loss.kl", 0.01, "k3", "sharded"),
    *("--warm-start.steps", 3, "--warm-start.batch", 8, "--genrm.judge", "adapter", "--genrm.max-tokens", 40, "--run.name", "judged"),
    *("--data.train", "tests/workers/lora_runs.py:Half", "--data.test", "tests/workers/lora_runs.py:Half", *SMALL),
)


class Half(Arithmetic):
    """Every other text is right, and one of two solutions is read for it, so that a judge has work before the policy has learnt anything;
    but nothing is right in the first evaluation."""

    def check(self, prompt: Prompt, rollout: Rollout) -> Check:
        right = len(rollout.text) % 2 and rollout.policy_version > 1
        return Check(outcome=Outcome.CORRECT if right else Outcome.WRONG, extracted=None)

    def split(self, text: str) -> tuple[str, ...]:
        return ("12+7=19", "19-4=15") if len(text) % 3 else ("12+7=19", "19-4=18")


def write_judge(folder: Path) -> None:
    """The base itself as an adapter of it: B is zero."""
    layers = [f"model.layers.{i}.self_attn.{name}_proj" for i in range(3) for name in "qv"]
    shapes = {f"{layer}.lora_{kind}": (4, 128) if kind == "A" else (128, 4) for layer in layers for kind in "AB"}
    layouts = {name: Layout(torch.float32, shape) for name, shape in shapes.items()}
    write_adapter(folder, Shape(4, 8.0, "q_proj,v_proj"), base_of(BASE), layouts, map(torch.zeros, shapes.values()), {"prompt": "own"})


def run(line: tuple, kill: str = "", witness: Path = Path()) -> None:
    """`kill`: point, signal, pass; as `killed` has them."""
    if kill:
        point, which, nth = kill.split(",")
        killed.arm(point, which, int(nth), witness)
    RANK.watch()
    with RANK.speaks():
        train.main(parse_arguments([str(word) for word in line]))


def runs(root: Path, names: tuple[str, ...]) -> dict:
    """Status and what the console said of each, in this order; `struck` was killed, went on, was stopped, and goes on, each in its last
    step."""
    write_judge(root / "judge")
    mixture, said = write_tiny(root / "mixture", "qwen3_moe", tied=False), {}
    judged = ("arith", *JUDGED, "--genrm.model", root / "judge")
    experts = ("arith", "--model.path", mixture, "--model.lora", 4, 8.0, "", "--loss.balance", 0.01, "--warm-start.steps", 2)
    experts += ("--warm-start.batch", 4, *SMALL, "--run.steps", 1, "--data.test", "--run.name", "mixture", "--run.folder", root / "mixed")
    for name, line, *kill in (
        ("whole", (*judged, "--run.folder", root / "whole")),
        ("killed", (*judged, "--run.folder", root / "struck"), "optimizer step,SIGKILL,6", root / "killed"),
        ("stopped", (*judged, "--run.folder", root / "struck"), "training,SIGTERM,2", root / "stopped"),
        ("struck", (*judged, "--run.folder", root / "struck")),
        ("mixture", experts),
    ):
        if name in names:
            log = root / f"{name}.log"
            said[name] = {"status": forked(1, lambda _, line=line, kill=kill: run(line, *kill), log), "said": log.read_text()[-20_000:]}
    return said

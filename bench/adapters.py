"""Do kernels/adapters compute what TRL, verl and PEFT compute? Losses and gradients, side by side with the released packages, on CPU.

    make adapters     installs requirements/adapters.txt into build/adapters, runs the programs of kernels/README.md, then this

One line a case: the worst difference of the loss and of any gradient (of any logged metric, too). Ends with status 1 where one is above its
limit, or where what should be refused is not.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import machine
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent

V, LIMIT = 101, 1e-5
SMALL = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SMALL |= {"num_key_value_heads": 2, "pad_token_id": V - 3, "eos_token_id": V - 2, "bos_token_id": None, "initializer_range": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True},
}
rows: list[dict[str, Any]] = []


def model_of(kind: str) -> Any:
    """By way of a folder: TRL loads a reference model from where the policy comes from."""
    folder = ROOT / "build" / "adapters-run" / kind
    torch.manual_seed(1)
    if not (folder / "config.json").exists():
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | KINDS[kind])).float().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def say(host: str, case: str, limit: float = LIMIT, error: str = "", **gaps: float) -> None:
    """A row, on the terminal and for the file."""
    worst = max(gaps.values(), default=0.0)
    good = not error and worst <= limit
    rows.append({"host": host, "case": case, "limit": limit, "good": good, "error": error or None, **gaps})
    figures = error or "  ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
    print(f"{'ok ' if good else 'BAD'}  {host:16} {case:104} {figures}", flush=True)


def refused(host: str, case: str, act: Callable[[], Any], said: str) -> None:
    try:
        act()
    except ValueError as error:
        say(host, f"{case}: refused", error="" if said in str(error) else f"refused, but: {error}")
    else:
        say(host, f"{case}: refused", error="not refused")


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference; of entries beyond 1 relative to the largest of them."""
    return ((a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1.0)).item() if a.numel() else 0.0


def gaps(names: tuple[str, ...], theirs: tuple[Tensor, ...], ours: tuple[Tensor, ...]) -> dict[str, float]:
    return {name: gap(b, a) for name, a, b in zip(names, theirs, ours, strict=True)}


# TRL


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(V - 3)} | {"<pad>": V - 3, "<eos>": V - 2, "<unk>": V - 1}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def trainer_of(kind: type, model: Any, options: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, RLOOConfig, RLOOTrainer

    settings: dict[str, Any] = {"output_dir": str(ROOT / "build" / "adapters-run"), "per_device_train_batch_size": 8, "num_generations": 4}
    settings |= {"max_completion_length": 12, "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "logging_steps": 1}
    settings |= {"gradient_checkpointing": False, "max_steps": 3, "learning_rate": 1e-3, "temperature": 1.0, "disable_tqdm": True}
    peft = {"peft_config": options["peft_config"]} if "peft_config" in options else {}
    settings |= {name: value for name, value in options.items() if name not in ("peft_config", "shown")}
    prompts = Dataset.from_dict({"prompt": ["t1 t2 t3", "t4 t5", "t6", "t7 t8 t9 t10"] * 8})
    return kind(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(text) % 3) for text in completions],
        args=(RLOOConfig if issubclass(kind, RLOOTrainer) else GRPOConfig)(**settings),
        train_dataset=prompts,
        processing_class=tokenizer(),
        **peft,
    )


def batch_of(host: Any, shown: tuple[str, ...]) -> dict[str, Tensor]:
    """6 rollouts, prompts padded on the left; old and reference log-probabilities near the model's own. `shown`: what else is in it."""
    generator = torch.Generator().manual_seed(0)
    prompt_lengths, lengths = torch.tensor([4, 2, 3, 4, 1, 4]), torch.tensor([9, 1, 4, 7, 2, 9])
    prompt_mask = (torch.arange(4) >= 4 - prompt_lengths[:, None]).long()
    mask = (torch.arange(9) < lengths[:, None]).long()
    if "nothing trained" in shown:
        mask = torch.zeros_like(mask)
    prompts, completions = (torch.randint(0, V - 3, x.shape, generator=generator).masked_fill(x == 0, V - 3) for x in (prompt_mask, mask))
    batch = {"prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": completions, "completion_mask": mask}
    batch |= {"advantages": torch.randn(6, generator=generator), "num_items_in_batch": mask.sum().float()}
    batch["advantages"][3] = 0.0
    noise = [0.6 * torch.randn(mask.shape, generator=generator) for _ in range(3)]
    with torch.no_grad():
        ids, attention = torch.cat([prompts, completions], 1), torch.cat([prompt_mask, mask], 1)
        logprob, *_ = host._get_per_token_logps_and_entropies(host.model, ids, attention, 9)
    if "on policy" not in shown:
        batch["old_per_token_logps"] = logprob + noise[0]
    if host.beta:
        batch["ref_per_token_logps"] = logprob + noise[1]
    if "tool_mask" in shown:
        batch["tool_mask"] = (torch.arange(9) % 3 != 1).long().expand(6, 9)
    if "sampler" in shown:
        batch["importance_sampling_ratio"] = noise[2].exp().clamp(max=2.0) * mask
        batch["sampling_per_token_logps"] = batch["old_per_token_logps"] - noise[2]
    return batch


def step_of(trainer: Any, batch: dict[str, Tensor], shown: tuple[str, ...]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
    """Loss, gradients of what is trained, and what was logged."""
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 2
    if "sampler" in shown:
        trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.model.parameters() if p.requires_grad]
    return loss.detach(), grads, {name: values[-1] for name, values in trainer._metrics["train"].items()}


SAME: list[dict[str, Any]] = [
    *({"loss_type": kind} for kind in ("grpo", "dapo", "bnpo", "dr_grpo", "sapo")),
    {"loss_type": "dapo", "epsilon_high": 0.28},
    {"loss_type": "grpo", "beta": 0.04},
    {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": True},
    {"loss_type": "dapo", "delta": 1.5},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    {"loss_type": "dapo", "temperature": 0.7},
    {"loss_type": "dapo", "entropy_coef": 0.01},
    {"loss_type": "dr_grpo", "entropy_coef": 0.01},
    {"loss_type": "bnpo", "entropy_coef": 0.01, "entropy_coef_min": 0.0},
    {"loss_type": "dapo", "cast_lm_head_to_fp32": True},
    {"loss_type": "dapo", "gradient_checkpointing": True},
    {"loss_type": "dapo", "shown": ("on policy",)},
    {"loss_type": "grpo", "shown": ("tool_mask",)},
    {"loss_type": "dapo", "beta": 0.04, "shown": ("sampler", "tool_mask")},
    {"loss_type": "cispo", "epsilon_high": 5.0, "shown": ("sampler",)},
    {"loss_type": "dapo", "shown": ("nothing trained",)},
]
TRLS_OWN: list[dict[str, Any]] = [
    {"loss_type": "vespo"},
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "dapo", "importance_sampling_level": "sequence"},
    {"loss_type": "dapo", "top_entropy_quantile": 0.5},
    {"loss_type": "grpo", "entropy_coef": 0.01},
    {"loss_type": "dapo", "off_policy_mask_threshold": 0.1, "shown": ("sampler",)},
]
"""Options without a fused loss: `SoundrlLogprob` alone."""


def compare_trl(kind: str, options: dict[str, Any], fused: bool, limit: float = LIMIT) -> None:
    from trl import GRPOTrainer

    from soundrl.kernels.adapters.trl import SoundrlLogprob, SoundrlLoss

    shown = options.get("shown", ())
    case = f"{kind} {' '.join(f'{k}={v}' for k, v in options.items() if k != 'shown')} {' '.join(shown)}".replace("peft_config=", "")[:100]
    model = model_of(kind)
    host = trainer_of(GRPOTrainer, copy.deepcopy(model), options)
    batch = batch_of(host, shown)
    loss, grads, logged = step_of(host, batch, shown)
    for mixin in (SoundrlLogprob, SoundrlLoss):
        name = f"trl {mixin.__name__[7:].lower()}"
        ours = type("Trainer", (mixin, GRPOTrainer), {})
        if mixin is SoundrlLoss and not fused:
            refused(name, case, lambda ours=ours: trainer_of(ours, copy.deepcopy(model), options), "take class Trainer(SoundrlLogprob")
            continue
        own_loss, own_grads, own_logged = step_of(trainer_of(ours, copy.deepcopy(model), options), batch, shown)
        missing = set(logged) ^ set(own_logged)
        metric = max((abs(own_logged[k] - logged[k]) for k in logged if logged[k] == logged[k]), default=0.0)
        found = {"loss": gap(own_loss, loss), "gradient": max(gap(a, b) for a, b in zip(own_grads, grads, strict=True)), "metrics": metric}
        say(name, case, limit, error=f"logs differ in {missing}" if missing else "", **found)


def trl() -> None:
    for kind in ("llama", "qwen2"):
        for options in SAME:
            if not (options.get("cast_lm_head_to_fp32") and KINDS[kind].get("tie_word_embeddings")):
                compare_trl(kind, options, fused=True)
    compare_trl("llama", {"loss_type": "dapo", "bf16": True}, fused=True, limit=0.02)
    compare_rloo()
    for options in TRLS_OWN:
        compare_trl("llama", options, fused=False)
    for kind in ("gemma2", "cohere", "granite", "mixtral"):
        compare_trl(kind, {"loss_type": "dapo", "beta": 0.04}, fused=True)
    from peft import LoraConfig

    for targets in (["q_proj"], ["q_proj", "v_proj"]):
        compare_trl("llama", {"loss_type": "dapo", "peft_config": LoraConfig(target_modules=targets, r=3)}, fused=True)
    train_trl()


def compare_rloo() -> None:
    from trl import RLOOTrainer

    from soundrl.kernels.adapters.trl import SoundrlLogprob

    host = trainer_of(RLOOTrainer, model_of("llama"), {"beta": 0.04})
    ours = trainer_of(type("Trainer", (SoundrlLogprob, RLOOTrainer), {}), model_of("llama"), {"beta": 0.04})
    batch = batch_of(host, ())
    batch["old_logps"] = (batch["old_per_token_logps"] * batch["completion_mask"]).sum(1)
    (loss, grads, _), (own_loss, own_grads, _) = (step_of(trainer, batch, ()) for trainer in (host, ours))
    gradient = max(gap(a, b) for a, b in zip(own_grads, grads, strict=True))
    say("trl logprob", "llama RLOOTrainer", loss=gap(own_loss, loss), gradient=gradient)


def train_trl() -> None:
    """Three steps of `train()`, two iterations on each batch, with generation: the weights at the end."""
    from trl import GRPOTrainer

    from soundrl.kernels.adapters.trl import SoundrlLogprob, SoundrlLoss

    options = {"loss_type": "dapo", "num_iterations": 2, "gradient_accumulation_steps": 2, "beta": 0.04}
    ends = []
    for bases in ((GRPOTrainer,), (SoundrlLogprob, GRPOTrainer), (SoundrlLoss, GRPOTrainer)):
        torch.manual_seed(0)
        trainer = trainer_of(type("Trainer", bases, {}), model_of("llama"), options)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        ends.append(([p.detach().clone() for p in trainer.model.parameters()], logs))
    for name, (weights, logs) in zip(("trl logprob", "trl loss"), ends[1:], strict=True):
        timed = ("step_time", "runtime", "per_second")
        metric = max(
            abs(a[k] - b[k])
            for a, b in zip(logs, ends[0][1], strict=True)
            for k in b
            if isinstance(b[k], float) and not any(word in k for word in timed)
        )
        gaps = {"weights": max(gap(a, b) for a, b in zip(weights, ends[0][0], strict=True)), "metrics": metric}
        say(name, "llama train(), 3 Adam steps, 2 iterations, accumulation 2", 1e-4, **gaps)


# PEFT


def peft() -> None:
    from peft import LoraConfig, get_peft_model

    from soundrl.kernels.adapters.causal_lm import token_logprobs
    from soundrl.kernels.adapters.head import head_of

    ids = torch.randint(1, V - 3, (3, 8), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(8) >= 3).expand(3, 8)

    def compare(case: str, model: Any) -> None:
        results = []
        for logits in (True, False):
            model.zero_grad()
            if logits:
                logp = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
                logprob = nn.functional.pad(logp.gather(-1, ids[:, 1:, None])[..., 0], (1, 0))
            else:
                logprob = token_logprobs(model, ids, None, mask).logprob
            (logprob * mask).sum().backward()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters() if p.requires_grad]
            results.append((logprob.detach() * mask, grads))
        (wanted, of_wanted), (ours, of_ours) = results
        say("peft", case, logprob=gap(ours, wanted), gradient=max(gap(a, b) for a, b in zip(of_ours, of_wanted, strict=True)))

    def lora(**settings: Any) -> Any:
        torch.manual_seed(2)
        model = get_peft_model(model_of("llama"), LoraConfig(**{"r": 3, "init_lora_weights": False} | settings))
        return model.train()

    compare("LoRA on attention, head frozen", lora(target_modules=["q_proj"]))
    compare("LoRA on lm_head", lora(target_modules=["q_proj", "lm_head"]))
    compare("LoRA on lm_head, rsLoRA", lora(target_modules=["lm_head"], use_rslora=True))
    compare("lm_head in modules_to_save", lora(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    two = lora(target_modules=["q_proj", "lm_head"])
    two.add_adapter("other", LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False))
    two.base_model.set_adapter(["default", "other"])
    compare("two active adapters on lm_head", two)
    with two.disable_adapter():
        ours = token_logprobs(two, ids, None, mask).logprob
        logp = two(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        say("peft", "disable_adapter()", logprob=gap(ours[:, 1:], logp * mask[:, 1:]))
    merged = lora(target_modules=["q_proj", "lm_head"]).eval()
    merged.merge_adapter()
    ours = token_logprobs(merged, ids, None, mask).logprob
    logp = merged(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    say("peft", "merged", logprob=gap(ours[:, 1:], logp * mask[:, 1:]))
    dora = lora(target_modules=["lm_head"], use_dora=True)
    refused("peft", "DoRA on lm_head", lambda: head_of(dora), "variant of LoRA")
    dropped = lora(target_modules=["lm_head"], lora_dropout=0.1)
    refused("peft", "lora_dropout on lm_head, in training", lambda: head_of(dropped), "lora_dropout=0.1")


# verl


def verl() -> None:
    import inspect

    import verl.trainer.ppo.core_algos as algos
    from verl.utils import torch_functional as theirs
    from verl.utils.experimental import torch_functional as fused
    from verl.workers.config import ActorConfig

    from soundrl.kernels.adapters import verl as ours

    known = {"logprobs_from_logits": theirs.logprobs_from_logits, "FusedLinearForPPO": fused.FusedLinearForPPO}
    for name, function in known.items():
        mine = getattr(ours, name)
        pairs = [(mine, function)] if not isinstance(mine, type) else [(mine, function), (mine.forward, function.forward)]
        same = all(list(inspect.signature(a).parameters) == list(inspect.signature(b).parameters) for a, b in pairs)
        say("verl", f"{name}: signature", error="" if same else "differs")
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 9, 16, generator=generator), torch.randn(64, 16, generator=generator)
    ids, upstream = torch.randint(64, (2, 9), generator=generator), torch.randn(2, 9, generator=generator)
    results = []
    for kind in (known["FusedLinearForPPO"], ours.FusedLinearForPPO):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprob, entropy = kind(chunk_size=4)(h, w, ids, temperature=0.8)
        (upstream * (logprob + 0.3 * entropy)).sum().backward()
        results.append((logprob.detach(), entropy.detach(), h.grad, w.grad))
    say("verl", "FusedLinearForPPO", LIMIT, "", **gaps(("logprob", "entropy", "dhidden", "dweight"), *results))
    results = []
    for function in (known["logprobs_from_logits"], ours.logprobs_from_logits):
        logits = (hidden @ weight.t()).requires_grad_()
        logprob = function(logits * 1.0, ids)
        (upstream * logprob).sum().backward()
        results.append((logprob.detach(), logits.grad))
    say("verl", "logprobs_from_logits", LIMIT, "", **gaps(("logprob", "gradient"), *results))
    mask = (torch.arange(9) < torch.tensor([9, 4, 1, 0])[:, None]).long()
    noise = torch.randn(4, 4, 9, generator=generator)
    old, advantages, weights = -noise[0].abs(), noise[1], noise[2].abs()
    logprob = (old + 0.8 * noise[3]).clamp(max=0)
    for mode, aggregation in sorted(ours.RULES):
        for with_weights in (False, True):
            config = ActorConfig(
                strategy="fsdp", rollout_n=1, clip_ratio=0.2, clip_ratio_low=1.0 if mode == "cispo" else 0.2, clip_ratio_high=0.28,
                ppo_micro_batch_size_per_gpu=1,
            )  # fmt: skip
            config.global_batch_info.update(dp_size=2, batch_num_tokens=40, global_batch_size=8)
            results = []
            (own,) = [name for name, known_mode in ours.LOSSES.items() if known_mode == mode]
            for function in (algos.get_policy_loss_fn(mode), ours.verl_functions().policy_losses[own]):
                x = logprob.clone().requires_grad_()
                loss, metrics = function(old, x, advantages, mask, aggregation, config, weights if with_weights else None)
                loss.backward()
                results.append((loss.detach(), x.grad, torch.tensor([metrics[k] for k in sorted(metrics)])))
            case = f"{mode} {aggregation}{' rollout weights' if with_weights else ''}"
            say("verl", case, LIMIT, "", **gaps(("loss", "gradient", "metrics"), *results))
    ours.register()
    placed = theirs.logprobs_from_logits is ours.logprobs_from_logits and fused.FusedLinearForPPO is ours.FusedLinearForPPO
    entered = all(name in algos.POLICY_LOSS_REGISTRY for name in ours.LOSSES)
    say("verl", "register()", error="" if placed and entered else "not in place")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hosts", nargs="*", default=["peft", "verl", "trl"])
    parser.add_argument("--packages", default=str(ROOT / "build" / "adapters"), help="folder with requirements/adapters.txt installed")
    parser.add_argument("--out", type=Path, help="append the rows, as JSON lines")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    sys.path.append(chosen.packages)  # behind everything that is installed here
    torch.set_num_threads(1)
    for host in chosen.hosts:
        print(host, importlib.metadata.version(host))
        {"trl": trl, "peft": peft, "verl": verl}[host]()
    if chosen.out:
        versions = {host: importlib.metadata.version(host) for host in chosen.hosts}
        stamp = machine("cpu") | versions
        with chosen.out.open("a") as file:
            file.writelines(json.dumps({"bench": "adapters", **row, "stamp": stamp}) + "\n" for row in rows)
    bad = [row for row in rows if not row["good"]]
    print(f"{len(rows)} cases, {len(bad)} bad")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

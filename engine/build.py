"""From a configuration to the parts of a run: problems, verifier, judge, sampler. Everything a user can get wrong fails here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from soundrl.engine.config import Config
from soundrl.engine.generator import Generator
from soundrl.engine.judges import build_judge, build_probe
from soundrl.engine.judging_phase import JudgingPhase
from soundrl.engine.packing import Sample
from soundrl.engine.policy import Policy, check_folder
from soundrl.engine.weight_sync import PROBES
from soundrl.engine.world import World
from soundrl.fapo import arith
from soundrl.fapo.data import boxed_solution, load_prompts
from soundrl.fapo.prompt_stream import PromptStream
from soundrl.fapo.records import Outcome, Prompt, Rollout
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import ReasoningTask, Task, done
from soundrl.fapo.verify.thinking import Thoughts
from soundrl.fapo.verify.verifier import Verifier
from soundrl.genrm.arith_critic import ArithCriticSource
from soundrl.genrm.labelled import load_critic
from soundrl.genrm.task import CriticTask

ENDLESS_TEST_ROWS = 400


Source = arith.ArithSource | ArithCriticSource | list[Prompt]


def build_sources(config: Config) -> tuple[Source, dict[str, list[Prompt]]]:
    """Training problems, and evaluation sets by name."""
    data = config.data
    if config.run.task != "reasoning":
        return build_critic_sources(config)
    if data.train == "arith":
        train: Source = arith.ArithSource(config.run.seed)
    else:
        train = load_prompts(data.train, instruction=data.instruction)
    tests: dict[str, list[Prompt]] = {}
    rows = data.test_rows
    for name in data.test:
        if name == "arith":
            # One evaluation seed for all runs, so that seeds can be compared; p = 2 asks for the tens digit, where carries pay.
            for source in (arith.ArithSource(0, "test"), arith.ArithSource(0, "test", place=2)):
                tests[source.name] = [source.prompt(i) for i in range(rows or ENDLESS_TEST_ROWS)]
        else:
            tests[Path(name).stem] = load_prompts(name, instruction=data.instruction, max_rows=rows or None)
    return train, tests


def build_critic_sources(config: Config) -> tuple[Source, dict[str, list[Prompt]]]:
    """The same for a critic, from rows of FAPO-Critic or ProcessBench; of the embedded world there are flaws as in training, and others."""
    data = config.data
    train: Source = ArithCriticSource(config.run.seed) if data.train == "arith" else load_critic(data.train)
    tests: dict[str, list[Prompt]] = {}
    for name in data.test:
        if name == "arith":
            for source in (ArithCriticSource(0, "test"), ArithCriticSource(0, "test", unseen=True)):
                tests[source.name] = [source.prompt(i) for i in range(data.test_rows or ENDLESS_TEST_ROWS)]
        else:
            tests[Path(name).stem] = load_critic(name, max_rows=data.test_rows or None)
    return train, tests


def check_answers(prompts: Sequence[Prompt], verifier: Verifier) -> None:
    """ValueError naming the first row whose reference answer no response could be compared with, and how many there are."""
    with ThreadPoolExecutor(2) as pool:  # the verifier has two processes
        faults = [fault for fault in pool.map(lambda p: answer_fault(p, verifier), {p.answer: p for p in prompts}.values()) if fault]
    if faults:
        more = f" ({len(faults) - 1} more answers like it)" if len(faults) > 1 else ""
        raise ValueError(f"{faults[0]}; correct the answer or remove the row{more}")


def answer_fault(prompt: Prompt, verifier: Verifier) -> str | None:
    try:
        verifier.check_gold(prompt.answer)
    except ValueError as error:
        return f"{prompt.id}: {error}"
    return None


def build_task(
    config: Config, prompts: Sequence[Prompt], world: World, say: Callable[[str], None], tokenizer: Any
) -> tuple[Task, JudgingPhase | None]:
    """Verifier and judge, and the phase of a judge that sleeps, which `say` tells. Endpoints have been checked (they answer), and on rank 0
    so have the reference answers of `prompts`; a judge that loads beside the policy is waited for by `Task.ready`. The policy's `tokenizer`
    says where thinking begins and ends."""
    settings = reward_settings(config)
    if config.run.task != "reasoning":
        return CriticTask(settings, process=config.run.task == "critic"), None
    if config.data.train == "arith":

        def verify(prompt: Prompt, rollout: Rollout) -> Future[Outcome]:
            return done(arith.verify(prompt.answer, rollout.text, rollout.finish_reason == "stop"))

        def close() -> None: ...

    else:
        verifier, thoughts = Verifier(), Thoughts(tokenizer)
        close = verifier.close
        if world.main:
            check_answers(prompts, verifier)

        def verify(prompt: Prompt, rollout: Rollout) -> Future[Outcome]:
            text = thoughts.text(rollout.text, rollout.tokens)
            return verifier.submit(text, prompt.answer, prompt.form, thoughts.opened_by(rollout.prompt_tokens))

    built = build_judge(config, world, say)

    def close_all() -> None:
        close()
        built.close()

    task = ReasoningTask(
        verify,
        built.judge,
        settings,
        config.genrm.max_unknown,
        truth=arith.oracle if config.data.train == "arith" else None,
        probe=build_probe(config, built.judge, world),
        ready=built.ready,
        close=close_all,
        deadline=config.genrm.deadline[1],
        judge_sleeps=built.phase is not None,
    )
    return task, built.phase


def engine_count(config: Config, world: World) -> int:
    """Sampling engines of the run (tensor-parallel groups); ValueError where ranks and batches do not fit."""
    tensor_parallel, minibatch = config.rollout.tensor_parallel, config.optim.minibatch_prompts
    if world.size % tensor_parallel:
        raise ValueError(f"rollout.tensor_parallel {tensor_parallel} does not divide the {world.size} ranks; start a multiple of it")
    if minibatch % world.size:
        raise ValueError(f"optim.minibatch_prompts {minibatch} is no multiple of the {world.size} ranks; every rank trains on whole groups")
    return world.size // tensor_parallel


def model_folder(config: Config, world: World) -> Path:
    """The folder the policy starts from; for `arith` rank 0 writes one with fresh weights."""
    if config.model.path != "arith":
        return check_folder(config.model.path)
    from soundrl.engine.arith_critic_model import write_arith_critic
    from soundrl.engine.arith_model import write_arith_model

    critic = config.run.task != "reasoning"
    folder = Path(config.run.folder) / "fresh" / f"arith-{'critic-' if critic else ''}seed{config.run.seed}"
    if world.main:
        (write_arith_critic if critic else write_arith_model)(folder, config.run.seed)
    world.barrier()
    return folder


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def probe_prompts(source: Source, encode: Encoder) -> list[tuple[int, ...]]:
    """Token ids of the first training problems, for the gate of the weight sync."""
    first = source[:PROBES] if isinstance(source, list) else [source.prompt(i) for i in range(PROBES)]
    return [encode(prompt) for prompt in first]


def reward_settings(config: Config) -> RewardSettings:
    return RewardSettings(
        lam=config.fapo.lam,
        normalize_std=config.fapo.normalize_std,
        max_new_tokens=config.rollout.max_new_tokens,
        overlong_buffer=config.fapo.overlong[0],
        overlong_factor=config.fapo.overlong[1],
        drop_unknown=config.genrm.unknown == "drop",
    )


def build_generator(config: Config, policy: Policy, world: World) -> Generator:
    if config.rollout.engine == "torch":
        from soundrl.engine.torch_generator import TorchGenerator

        return TorchGenerator(policy.folder, policy.tokenizer, config.model, world)
    from soundrl.engine.vllm_generator import VllmGenerator

    return VllmGenerator(policy.folder, policy.tokenizer, config.model, config.rollout, world)


class Encoder:
    """Prompts to token ids, by the tokenizer's chat template; remembers what it has encoded."""

    def __init__(self, tokenizer: Any, max_prompt_tokens: int) -> None:
        self.tokenizer, self.max_prompt_tokens = tokenizer, max_prompt_tokens
        self.known: dict[str, tuple[int, ...]] = {}

    def __call__(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the prompt, up to where the response begins. ValueError, naming the row, where it is too long."""
        tokens = self.known.get(prompt.id)
        if tokens is None:
            tokens = self.known[prompt.id] = tuple(
                self.tokenizer(self.render(prompt), add_special_tokens=prompt.messages is None)["input_ids"]
            )
        if len(tokens) > self.max_prompt_tokens:
            raise ValueError(
                f"{prompt.id}: the prompt has {len(tokens)} tokens, but model.max_length − rollout.max_new_tokens leaves "
                f"{self.max_prompt_tokens}; raise model.max_length, lower rollout.max_new_tokens, or remove the row"
            )
        return tokens

    def render(self, prompt: Prompt) -> str:
        """The text that is tokenized. A tokenizer without chat template (a base model) gets the messages' plain text."""
        if prompt.messages is None:
            return prompt.text
        if self.tokenizer.chat_template is None:
            return "\n\n".join(message["content"] for message in prompt.messages) + "\n\n"
        return self.tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)

    def response(self, text: str) -> tuple[int, ...]:
        """Token ids of a supervised response, its end token included."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """ValueError for the first prompt that does not fit."""
        for prompt in prompts:
            self(prompt)


Demonstrations = Callable[[int, int], list[Sample]]


def build_demonstrations(config: Config, source: Source, encode: Encoder) -> Demonstrations:
    """(step, steps in all) → the warm start's samples of that step, over all ranks.

    The embedded world plants errors (and its critic leaves its drills) in the last 40 %: from the first step on, arithmetic never forms.
    ValueError, naming the row, for a solution that cannot be used or does not fit.
    """
    batch, longest = config.warm_start.batch, config.model.max_length

    def sample(prompt: Prompt, solution: str) -> Sample:
        return Sample(prompt_tokens=encode(prompt), tokens=encode.response(solution))

    if not isinstance(source, list):
        # Far from the indices that the rollouts use, so that no RL prompt has been a demonstration.
        return lambda step, steps: [sample(*source.demonstration(2**40 + step * batch + i, step >= 0.6 * steps)) for i in range(batch)]
    samples: dict[str, Sample] = {}
    rows = [prompt for prompt in source if prompt.solution is not None]
    for row in rows:
        try:
            samples[row.id] = sample(row, boxed_solution(row.solution or "", row.answer))
        except ValueError as error:
            raise ValueError(f"{row.id}: solution: {error}") from error
        if samples[row.id].length > longest:
            raise ValueError(
                f"{row.id}: prompt and solution have {samples[row.id].length} tokens, more than model.max_length {longest}; "
                "raise model.max_length or remove the row"
            )
    if not rows:
        raise ValueError(
            f"warm_start.steps is {config.warm_start.steps}, but no row of {config.data.train} has a solution; set --warm-start.steps 0"
        )
    stream = PromptStream(rows, config.run.seed)
    # The stream is the same on every rank; each takes its part of the batch itself, so any number of ranks fits.
    return lambda step, steps: [samples[row.id] for row in stream.take(batch)]

"""Tasksets of the `verifiers` package (0.4, `verifiers.v1`), of one turn: `--data.train hub:<taskset>`, as `hub:gsm8k` or `hub:owner/name`.

The package, and the taskset's own, are the user's to install: `pip install verifiers`. Tasks become prompts, and a task's rewards, weighted
and summed, are a rollout's. They run in this process, in threads, as the package has them: trusted code, with no limit but its own. What
needs more than a text to be scored, tool servers, a container, a judge with a runtime, is refused; write such a task as a
`ToolEnvironment`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

from soundrl.engine.environments.environment import HUB, Environment, Source, Worked
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.rows import DataError, RowError, shown
from soundrl.fapo.records import Check, Outcome, Prompt, Rollout, Said

MOST_TASKS = 20_000
"""Of an endless taskset."""


def hub_environment(name: str) -> type[Environment]:
    """The class that stands for one taskset."""
    return type("HubTaskset", (HubEnvironment,), {"taskset": name.removeprefix(HUB)})


class HubEnvironment(Environment):
    taskset: ClassVar[str] = ""

    @cached_property
    def tasks(self) -> dict[str, Any]:
        """By prompt id."""
        return {f"{HUB}{self.taskset}:{number}": task for number, task in enumerate(islice(load(self.taskset), MOST_TASKS), 1)}

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(32, 4 * len(os.sched_getaffinity(0))), "taskset")

    def problems(self, left_out: LeftOut) -> list[Prompt]:
        found, faults = list[Prompt](), list[RowError]()
        for id_, task in self.tasks.items():
            try:
                found.append(prompt_of(id_, task, self.taskset))
            except RowError as error:
                error.place = id_
                faults.append(error)
        if faults:
            left_out.add(f"{HUB}{self.taskset}", len(self.tasks), faults)
        return found

    def tests(self) -> dict[str, list[Prompt]]:
        return {f"{HUB}{self.taskset}": self.problems(LeftOut())[: self.config.data.test_rows or None]}

    def demonstrations(self, problems: Source) -> Worked:
        raise ValueError(f"warm_start.steps is {self.config.warm_start.steps}, but tasksets have no solutions; set --warm-start.steps 0")

    def check(self, prompt: Prompt, rollout: Rollout) -> Future[Said]:
        return self.threads.submit(self._score, self.tasks[prompt.id], prompt, rollout)

    def _score(self, task: Any, prompt: Prompt, rollout: Rollout) -> Said:
        trace = trace_of(task, prompt, rollout)
        try:
            asyncio.run(task.score(trace))
        except Exception as error:  # noqa: BLE001 — whatever a task raises: its rollout leaves its group, and is counted
            return Check(outcome=Outcome.UNKNOWN, reason="raised", extracted=shown(str(error), 200))
        reward = float("nan") if not trace.rewards or None in trace.rewards.values() else float(trace.reward)
        if not math.isfinite(reward):
            return Check(outcome=Outcome.UNKNOWN, reason="value")
        right = reward >= self.config.data.reward[1]
        return Check(outcome=Outcome.CORRECT if right else Outcome.WRONG, reward=reward)

    def close(self) -> None:
        if "threads" in vars(self):
            self.threads.shutdown(cancel_futures=True)


def load(name: str) -> Any:
    """The taskset. DataError, one line with the cure, where it is not there or needs what this adapter has not."""
    try:
        from verifiers.v1.utils import loaders  # type: ignore[import-not-found]
    except ImportError as error:
        raise DataError(f"{HUB}{name}: the package verifiers cannot be imported ({error}); pip install verifiers (0.4 or later)") from None
    try:
        taskset = loaders.load_taskset(loaders.taskset_config_type(name)(id=name))
    except Exception as error:  # noqa: BLE001 — its own code; a taskset's import may raise anything
        raise DataError(f"{HUB}{name}: {type(error).__name__}: {shown(str(error), 200)}; install the taskset's package") from None
    if needs := missing(taskset, name):
        raise DataError(f"{HUB}{name} needs {needs}, which only the package's own runs have; write it as a ToolEnvironment")
    return taskset


def missing(taskset: Any, name: str) -> str:
    """What its tasks need beside a text; empty = nothing. Their scoring would leave out, without a word, what needs a runtime."""
    if (first := next(iter(taskset), None)) is None:
        raise DataError(f"{HUB}{name} has no task; use another")
    if type(first).NEEDS_CONTAINER:
        return "a container"
    if type(taskset).toolsets(taskset.config) or type(first).toolsets(first.config):
        return "tool servers"
    hooks = [*first.hooks("reward"), *(judge.score for judge in first.plugged_judges())]
    asked = [inspect.signature(hook).parameters.get("runtime") for hook in hooks]
    if any(each is not None and each.default is each.empty for each in asked):
        return "a runtime for its rewards"
    return "" if hooks else "a reward of its own environment"


def prompt_of(id: str, task: Any, taskset: str) -> Prompt:
    """What the policy is asked. RowError for anything but text."""
    data = task.data
    asked = [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else []
    if isinstance(data.prompt, list):
        asked = [{"role": message.role, "content": message.content} for message in data.prompt]
    if not asked or not all(isinstance(message["content"], str) for message in asked):
        raise RowError("its prompt is no text; use a taskset of texts", "prompt")
    if data.system_prompt:
        asked.insert(0, {"role": "system", "content": data.system_prompt})
    answer = getattr(data, "answer", None)
    text = next((message["content"] for message in reversed(asked) if message["role"] == "user"), asked[-1]["content"])
    return Prompt(id=id, text=text, messages=tuple(asked), answer="" if answer is None else str(answer), source=f"{HUB}{taskset}")


def trace_of(task: Any, prompt: Prompt, rollout: Rollout) -> Any:
    """The rollout as the package's own scoring reads it: a message a node, the last one sampled."""
    import verifiers.v1 as vf  # type: ignore[import-not-found]
    from verifiers.v1.state import state_cls  # type: ignore[import-not-found]

    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    said = [kinds[message["role"]](content=message["content"]) for message in prompt.messages or ()]
    nodes = [vf.MessageNode(parent=n - 1 if n else None, message=message) for n, message in enumerate(said)]
    nodes.append(vf.MessageNode(parent=len(said) - 1, message=vf.AssistantMessage(content=rollout.answer_text), sampled=True))
    about = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    agent = vf.AgentInfo(config=vf.AgentConfig())
    return vf.Trace(task=about, state=state_cls(type(task))(), agent=agent, nodes=nodes, is_completed=True, ok=True, stop_condition="stop")

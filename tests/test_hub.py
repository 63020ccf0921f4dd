"""Tasksets of the package `verifiers`: prompts, rewards, and what is refused. A stand-in has the surface that the adapter touches; the
package itself is asked in an environment of its own by `python tests/hub_taskset.py`."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from soundrl.engine.environments.environment import answers, build_environment, environment_of, is_environment
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.rows import DataError
from soundrl.fapo.records import Outcome, Rollout


class Task:
    NEEDS_CONTAINER, key, hash = False, "k", "h"
    toolsets = classmethod(lambda cls, config: [])

    def __init__(self, **data):
        self.data, self.config = SimpleNamespace(**{"system_prompt": None, "answer": None} | data), None

    def hooks(self, kind):
        return [self.right]

    def plugged_judges(self):
        return []

    def right(self, trace):
        if self.data.answer == "raise":
            raise ValueError("no such answer")
        return None if self.data.answer == "none" else float(trace.nodes[-1].message.content == self.data.answer)

    async def score(self, trace):
        value = self.right(trace)
        trace.rewards["right"] = None if value is None else SimpleNamespace(value=value)
        trace.reward = 0.5 * (value or 0.0)


class Contained(Task):
    NEEDS_CONTAINER = True


class Served(Task):
    toolsets = classmethod(lambda cls, config: ["a server"])


class Running(Task):
    def right(self, trace, runtime):  # type: ignore[override]
        return 1.0


class Taskset(list):
    config = SimpleNamespace(task=None)
    toolsets = classmethod(lambda cls, config: [])


SETS = {
    "sums": [
        Task(prompt="1+1?", answer="2"),
        Task(prompt="2+2?", answer="raise", system_prompt="Be brief."),
        Task(prompt="?", answer="none"),
    ],
    "images": [Task(prompt=[SimpleNamespace(role="user", content=["an image"])]), Task(prompt="1?", answer="1")],
    "contained": [Contained(prompt="1?")],
    "served": [Served(prompt="1?")],
    "running": [Running(prompt="1?")],
    "none": [],
}


@pytest.fixture
def package(monkeypatch):
    """`verifiers.v1`, as far as it is touched."""

    def load_taskset(config):
        if config.id not in SETS:
            raise ModuleNotFoundError(f"taskset {config.id!r} not found")
        return Taskset(SETS[config.id])

    node = lambda **fields: SimpleNamespace(**fields)  # noqa: E731
    parts = dict.fromkeys("SystemMessage UserMessage AssistantMessage MessageNode TraceTask AgentInfo AgentConfig".split(), node)
    loaders = {"load_taskset": load_taskset, "taskset_config_type": lambda name: node}
    for name, content in {
        **{"verifiers": {}, "verifiers.v1": parts | {"Trace": lambda **fields: SimpleNamespace(rewards={}, **fields)}},
        **{"verifiers.v1.utils": {"loaders": SimpleNamespace(**loaders)}, "verifiers.v1.state": {"state_cls": lambda kind: node}},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        if name == "verifiers.v1":
            sys.modules["verifiers"].v1 = module  # type: ignore[attr-defined]


SETTINGS = SimpleNamespace(data=SimpleNamespace(reward=("pool", 0.5), test_rows=0), warm_start=SimpleNamespace(steps=1))


def built(name: str):
    return build_environment(name, SETTINGS, None)  # type: ignore[arg-type]


def test_a_taskset_becomes_prompts_and_its_rewards_are_the_rollouts(package):
    assert is_environment("hub:owner/my-sums@0.1") and not answers(environment_of("hub:sums"))
    about = built("hub:sums")
    prompts = about.problems(LeftOut())
    assert [p.id for p in prompts] == ["hub:sums:1", "hub:sums:2", "hub:sums:3"]  # type: ignore[union-attr]
    assert prompts[1].messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"})  # type: ignore[index]
    assert prompts[0].text == "1+1?" and prompts[0].answer == "2"  # type: ignore[index]

    def earned(number: int, text: str):
        rollout = Rollout(
            prompt_id=f"hub:sums:{number}", sample=0, prompt_tokens=np.ones(1), tokens=np.ones(1), logprobs=np.zeros(1), text=text,
            finish_reason="stop", policy_version=0,
        )  # fmt: skip
        return about.check(prompts[number - 1], rollout).result(60)  # type: ignore[union-attr, index]

    assert [(c.outcome, c.reward) for c in (earned(1, "2"), earned(1, "3"))] == [(Outcome.CORRECT, 0.5), (Outcome.WRONG, 0.0)]
    for number, reason in ((2, "raised"), (3, "value")):
        said = earned(number, "2")
        assert said.outcome is Outcome.UNKNOWN and said.reward is None and said.reason == reason
    about.close()
    with pytest.raises(ValueError, match="tasksets have no solutions; set --warm-start.steps 0"):
        about.demonstrations(prompts)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("contained", "hub:contained needs a container, which only the package's own runs have; write it as a ToolEnvironment"),
        ("served", "hub:served needs tool servers, which"),
        ("running", "hub:running needs a runtime for its rewards, which"),
        ("none", "hub:none has no task; use another"),
        ("other", "hub:other: ModuleNotFoundError: .*; install the taskset's package"),
    ],
)
def test_what_the_adapter_cannot_score_is_refused(package, name, words):
    with pytest.raises(DataError, match=f"^{words}"):
        built(f"hub:{name}").problems(LeftOut())


def test_a_task_that_is_no_text_is_left_out_by_name(package):
    left_out = LeftOut()
    assert [p.text for p in built("hub:images").problems(left_out)] == ["1?"]
    assert "hub:images:1" in left_out.rows


def test_without_the_package_there_is_one_line_with_the_cure():
    assert "verifiers" not in sys.modules  # witness: it is no part of this environment
    with pytest.raises(DataError, match="^hub:sums: the package verifiers cannot be imported .*; pip install verifiers"):
        built("hub:sums").problems(LeftOut())

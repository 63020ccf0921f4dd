"""The adapter of `engine/environments/hub.py` against the package itself, in an environment that has it:

    python -m venv build/hub && build/hub/bin/pip install verifiers==0.4.0 -e . && build/hub/bin/python tests/hub_taskset.py

This file is a taskset too, by its name: `hub:hub_taskset`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import verifiers.v1 as vf

__all__ = ["Sums"]


class SumData(vf.TaskData):
    answer: str


class Sum(vf.Task[SumData]):
    @vf.reward(weight=2.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply.strip() == self.data.answer)

    @vf.reward(weight=0.5)
    async def brief(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply) < 10)


class Sums(vf.Taskset[Sum]):
    def load(self):
        for n in range(3):
            yield Sum(SumData(prompt=f"{n}+{n}?", system_prompt="Add.", answer=str(2 * n)), self.config.task)


def main() -> None:
    from soundrl.engine.environments.environment import build_environment
    from soundrl.fapo.data.left_out import LeftOut
    from soundrl.fapo.records import Rollout

    sys.path.insert(0, str(Path(__file__).parent))
    settings = SimpleNamespace(data=SimpleNamespace(reward=("pool", 2.0), test_rows=0), warm_start=SimpleNamespace(steps=0))
    about = build_environment("hub:hub_taskset", settings, None)  # type: ignore[arg-type]
    prompts = about.problems(LeftOut())
    assert [p.text for p in prompts] == ["0+0?", "1+1?", "2+2?"] and prompts[1].answer == "2", prompts  # type: ignore[union-attr]
    assert prompts[0].messages == ({"role": "system", "content": "Add."}, {"role": "user", "content": "0+0?"})  # type: ignore[index]
    for text, reward, outcome in (("2", 2.5, "correct"), ("3", 0.5, "wrong"), ("it is certainly 2", 0.0, "wrong")):
        rollout = Rollout(
            prompt_id="", sample=0, prompt_tokens=np.ones(1), tokens=np.ones(1), logprobs=np.zeros(1), text=text, finish_reason="stop",
            policy_version=0,
        )  # fmt: skip
        said = about.check(prompts[1], rollout).result(60)  # type: ignore[union-attr, index]
        assert (said.reward, said.outcome.value) == (reward, outcome), said
    about.close()
    print("verifiers", sys.modules["verifiers"].__version__, "ok")


if __name__ == "__main__":
    main()

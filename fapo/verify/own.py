"""A user's function that rewards responses: which of three signatures it has, how it is called, and what its result means.

| found by the parameter | signature | called with |
|---|---|---|
| `response` | `score(response, answer, prompt)`, or fewer of them | texts, and a mapping (`question`) |
| `completions` | TRL's `f(prompts, completions, **columns)` | lists of one; messages where the prompt has some; the row's columns |
| `solution_str` | verl's `compute_score(data_source, solution_str, ground_truth, extra_info=None)` | as verl's rows have them |

A result is a number (the reward), True or False (right or wrong, as the rule rewards them), an `Outcome`, a `Check`, None (nothing is to
be said: the rollout leaves its group), a list of one of these (TRL), or an object with a `score` (verl). Whatever else it is, and every
exception, is a fault: the rollout leaves its group and is counted by its reason. An asynchronous function is run to its end.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import linecache
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from soundrl.fapo.data.rows import DataError, shown
from soundrl.fapo.named import named
from soundrl.fapo.records import Check, Outcome, Prompt, Rollout, Said

REASONS = ("raised", "value", "cpu", "memory", "exit", "forks", "crash", "killed", "stuck", "broken")
"""Why nothing is known of a response: the function raised, gave something that is no reward, came to a limit of CPU time, memory or
processes, ended its process, brought it down; it was killed from outside or stood still; or it could not be loaded."""
OURS, TRL, VERL = "score(response, answer, prompt)", "TRL's f(prompts, completions, **columns)", "verl's compute_score"
FORMS = {
    "response": (OURS, ("response", "answer", "prompt")),
    "completions": (TRL, ("prompts", "completions")),
    "solution_str": (VERL, ("data_source", "solution_str", "ground_truth", "extra_info")),
}
_NO_COLUMNS = ("prompt", "prompts", "completion", "completions")
_LOST = (ImportError, NameError, SyntaxError)
"""What no other row would mend."""


def absolute(path: str) -> str:
    """`my_checks.py:score` with the whole path of the file: processes of the pool may start elsewhere."""
    file, _, name = path.rpartition(":")
    return f"{os.path.realpath(file)}:{name}" if file.endswith(".py") else path


def question(prompt: Prompt, rollout: Rollout, response: str) -> dict[str, Any]:
    """What is asked of the function, plain JSON: `response`, `answer`, and of the prompt `id`, `text`, `messages` (None where it is a
    text), `source`, `form`, `row` (its other columns); of the rollout `transcript` (the response, or all turns), `turns` and
    `finish_reason`."""
    asked = {
        "id": prompt.id,
        "text": prompt.text,
        "messages": prompt.messages,
        "source": prompt.source,
        "form": prompt.form,
        "row": dict(prompt.row),
        "transcript": rollout.text if rollout.turns else response,
        "turns": [vars(turn) for turn in rollout.turns],
        "finish_reason": rollout.finish_reason,
    }
    return json.loads(json.dumps({"response": response, "answer": prompt.answer, "prompt": asked}, default=_plain))


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


class Own:
    """The function at `path`. DataError where there is none, or its signature is none of the three."""

    def __init__(self, path: str) -> None:
        self.path, self.file = path, path.rpartition(":")[0]
        if (folder := str(Path(self.file).parent)) not in sys.path and self.file.endswith(".py"):
            sys.path.insert(0, folder)
            os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (folder, os.environ.get("PYTHONPATH")) if part)
        self.function = named(path)
        self.says, self.names, self.takes_all = _signature(path, self.function)

    def read(self, asked: Mapping[str, Any]) -> bool:
        return True

    def answer(self, asked: Mapping[str, Any]) -> list[Any]:
        """The result as plain JSON: `["number", x]`, `["outcome", value, reward, extracted]`, or `["fault", reason, text]`."""
        try:
            return _result(self._call(asked))
        except MemoryError:
            raise
        except SystemExit as error:
            return ["fault", "exit", f"it ended by itself ({shown(str(error.code))})", False]
        except BaseException as error:  # noqa: BLE001 — whatever a user's function raises, it is told, and ends no run
            return ["fault", "value" if isinstance(error, _NoReward) else "raised", self._told(error), isinstance(error, _LOST)]

    def _call(self, asked: Mapping[str, Any]) -> Any:
        prompt = asked["prompt"]
        row = prompt["row"]
        if self.says == OURS:
            given = {**asked}
        elif self.says == TRL:
            chat = prompt["messages"] is not None
            said = [{"role": "assistant", "content": asked["response"]}] if chat else asked["response"]
            columns = {"answer": asked["answer"], **{name: value for name, value in row.items() if name not in _NO_COLUMNS}}
            given = {name: [value] for name, value in columns.items()}
            given |= {"prompts": [prompt["messages"] if chat else prompt["text"]], "completions": [said]}
        else:
            rewarded = row.get("reward_model")
            truth = rewarded.get("ground_truth") if isinstance(rewarded, dict) else None
            given = {"data_source": prompt["source"], "solution_str": asked["response"], "extra_info": row.get("extra_info")}
            given["ground_truth"] = asked["answer"] if truth is None else truth
        if not self.takes_all:
            given = {name: value for name, value in given.items() if name in self.names}
        result = self.function(**given)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    def _told(self, error: BaseException) -> str:
        """Kind, text and line: the last line of the user's own file, else where it was raised."""
        try:
            text = shown(str(error), 200)
        except Exception:  # noqa: BLE001 — its own text fails
            text = "an exception without text"
        if isinstance(error, _NoReward):
            return str(error)
        places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        own = [place for place in places if place[0] == self.file] or [place for place in places if place[0] != __file__]
        where = f" ({Path(own[-1][0]).name}, line {own[-1][1]}: {linecache.getline(*own[-1]).strip()[:80]})" if own else ""
        return f"{type(error).__name__}: {text}{where}"


class _NoReward(ValueError):
    """What came back is no reward."""


async def _awaited(result: Any) -> Any:
    return await result


def _signature(path: str, function: Any) -> tuple[str, tuple[str, ...], bool]:
    """Which of the three it is, the parameters that it has, and whether it takes any other by name."""
    three = f"write {OURS}, {TRL} or {VERL}(data_source, solution_str, ground_truth, extra_info=None)"
    if isinstance(function, type) or not callable(function):
        raise DataError(f"{path}: {'a class' if isinstance(function, type) else shown(function)} where a function is expected; {three}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: its parameters cannot be read ({error}); {three}") from None
    names = tuple(each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    found = [FORMS[name] for name in FORMS if name in names]
    if len(found) != 1:
        had = ", ".join(each.name for each in parameters) or "none"
        raise DataError(f"{path}: {'no' if not found else 'more than one'} known signature (its parameters: {had}); {three}")
    says, known = found[0]
    must = [each.name for each in parameters if each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    strange = [name for name in must if name not in names or (says != TRL and name not in known)]
    strange += [name for name in must if says == TRL and name in ("completion_ids", "trainer_state", "completions_ids")]
    if strange:
        raise DataError(f"{path}: it needs {strange[0]}, which {says} does not have; give it a default, or {three}")
    return says, names, takes_all


def _result(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise _NoReward(f"it gave a list of {len(value)} for one completion")
        value = value[0]
    extracted = None
    if isinstance(value, Mapping):
        if "score" not in value:
            raise _NoReward(f"it gave an object without a score ({shown(list(value)[:5])})")
        extracted, value = value.get("pred"), value["score"]
    if hasattr(value, "item") and callable(value.item):  # a scalar of numpy or torch
        value = value.item()
    if value is None:
        value = Outcome.UNSCORED
    if isinstance(value, bool):
        value = Outcome.CORRECT if value else Outcome.WRONG
    if isinstance(value, (Outcome, Check)):
        reward = None if value.reward is None else _finite(value.reward)
        return ["outcome", value.outcome.value, reward, value.extracted if value.extracted is None else str(value.extracted)[:1000]]
    if isinstance(value, str):
        raise _NoReward(f"it gave the text {shown(value)}, which is no reward")
    return ["number", _finite(value), extracted if isinstance(extracted, str) else None]


def _finite(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _NoReward(f"it gave {shown(value)}, which is no reward") from None
    if not math.isfinite(number):
        raise _NoReward(f"it gave {number}, which is no reward")
    return number


Fault = Callable[[str, str], None]


def meaning(result: Any, threshold: float) -> tuple[Said, str]:
    """What a result says of the response, and of a fault what there is to tell. `result`: of `Own.answer`, or of `WorkerPool` where the
    process ended."""
    if isinstance(result, str):
        reason = {"gold/cpu": "cpu", "gold": "broken"}.get(result, result)
        return Check(outcome=Outcome.UNKNOWN, reason=reason), ""
    kind, *rest = result
    if kind == "fault":
        return Check(outcome=Outcome.UNKNOWN, reason=rest[0]), rest[1]
    if kind == "number":
        outcome = Outcome.CORRECT if rest[0] >= threshold else Outcome.WRONG
        return Check(outcome=outcome, reward=rest[0], extracted=rest[1]), ""
    outcome, reward, extracted = Outcome(rest[0]), rest[1], rest[2]
    if outcome.leaves and reward is not None:
        reward = None
    return Check(outcome=outcome, reward=reward, extracted=extracted), ""

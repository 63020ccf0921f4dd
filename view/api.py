"""The tree of JSON files that the page reads, by path: what the server answers and what a bundle holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from soundrl.view import rollouts
from soundrl.view.anatomy import anatomy_page
from soundrl.view.find import find_page, prompt_page, texts_page
from soundrl.view.groups import group_page, step_page
from soundrl.view.judge import judge_page
from soundrl.view.overview import run_page, series_page
from soundrl.view.plain import NotThere
from soundrl.view.runs import Runs

Json = Any
Asked = Mapping[str, str]
KIND = re.compile(r"(train|eval|replaced|probe)\.json")
STEP = re.compile(r"step-(\d{6,9})")
LAST = 999_999_999
TEXTS = re.compile(r"find-texts-(\d{1,9})\.json")
WITHIN = re.compile(r"(group|rollout|tokens)-(\d{1,7})(?:-(\d{1,7}))?\.json")


def number(asked: Asked, name: str, default: int | None) -> int | None:
    """A parameter that is a whole number."""
    said = asked.get(name)
    if said is None:
        return default
    if not re.fullmatch(r"-?\d{1,9}", said):
        raise ValueError(f"{name} is {said[:40]!a}; give a whole number")
    return int(said)


def answer(runs: Runs, path: str, asked: Asked, whole: bool = False) -> Json:
    """NotThere where the path is none; ValueError for a parameter that cannot be. `whole`: for a bundle, which asks once."""
    if path == "runs.json":
        return runs.page()
    key, *rest = path.split("/")
    match rest:
        case ["run.json"]:
            return run_page(runs.run(key))
        case ["series.json"]:
            return series_page(runs.run(key), number(asked, "after", None))
        case ["judge.json"]:
            return judge_page(runs.run(key))
        case ["find.json"]:
            found = re.fullmatch(r"(\d{1,9})(?:(-)(\d{1,9})?)?", asked.get("steps", "0-"))
            if found is None:
                raise ValueError("steps are written as 1-12, 7 or 7-")
            return find_page(
                runs.run(key),
                asked.get("q", ""),
                asked.get("kind", "train"),
                int(found[1]),
                int(found[3] or (LAST if found[2] else found[1])),
            )
        case ["prompt.json"]:
            return prompt_page(runs.run(key), asked.get("id", ""))
        case [file] if at := TEXTS.fullmatch(file):
            return texts_page(runs.run(key), int(at[1]))
        case [step, "anatomy.json"] if at := STEP.fullmatch(step):
            return anatomy_page(runs.run(key), int(at[1]))
        case [step, file] if (at := STEP.fullmatch(step)) and (of := KIND.fullmatch(file)):
            return step_page(read(runs, key), int(at[1]), of[1])
        case [step, kind, file] if (
            (at := STEP.fullmatch(step)) and (of := WITHIN.fullmatch(file)) and (of[3] is None) == (of[1] == "group")
        ):
            run, number_of, g = read(runs, key), int(at[1]), int(of[2])
            if of[1] == "group":
                return group_page(run, number_of, kind, g)
            if of[1] == "rollout":
                return rollouts.rollout_page(run, number_of, kind, g, int(of[3]))
            start = max(number(asked, "from", 0) or 0, 0)
            return rollouts.token_page(run, run.step(number_of, kind), g, int(of[3]), start, None if whole else rollouts.TOKENS)
    raise NotThere(f"no file is named {path[:200]!a}; the page's links name those that there are")


def read(runs: Runs, key: str) -> Any:
    run = runs.run(key)
    run.disagreements.read()
    return run

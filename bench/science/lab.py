"""Runs what `experiments` names, a few at a time, and keeps what each has come to: `<folder>/<start>/seed<n>/<arm>/row.json`.

A run is the engine's own main job in a process of its own, forked from one that has imported everything. One that was interrupted goes on
from its checkpoint, one that has its row is not repeated, be it here or among rows kept elsewhere; another's row under the same name is
refused.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import NEW_TOKENS, PROMPTS, SAMPLES, STARTS, TEST_ROWS, Arm, Size
from record import ROOT, machine

from soundrl.engine.config import Config
from soundrl.engine.files.whole import whole
from soundrl.engine.launch.launch import parse_arguments

PRELOADED = ("soundrl.engine.train", "soundrl.engine.samplers.vllm_sampler", "vllm", "critics", "measures")
SHORT = {"outcome": "critic-outcome", "process": "critic"}
"""What a critic's arm trains (`run.task`)."""


@dataclass(frozen=True)
class Job:
    """One run of the main job: its folder, below the lab's, and its command line."""

    folder: str
    arguments: tuple[str, ...]
    arm: Arm | None
    """None: a warm start."""
    seed: int
    needs: tuple[str, ...] = ()
    """Folders of jobs that must have ended."""


class Lab:
    """`kept`: rows by run, of runs that are not repeated though their folders are not here, unless one to come needs their weights."""

    def __init__(self, folder: Path, size: Size, quick: bool, parallel: int, kept: dict[str, dict[str, Any]] | None = None) -> None:
        self.folder, self.size, self.quick, self.parallel, self.kept = folder, size, quick, parallel, kept or {}
        os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))

    def path(self, arm: Arm, seed: int) -> str:
        return f"{arm.start}/seed{seed}/{arm.name.replace('/', '_')}"

    def start(self, name: str, seed: int) -> Job:
        start = STARTS[name]
        needs = (f"{start.after}/seed{seed}/start",) if start.after else ()
        model = self.weights(needs[0]) if needs else start.model
        world = () if name == "critic" else ("--data.train", start.world, "--model.path", model)
        arguments = (start.recipe, "--run.seed", str(seed), "--run.steps", "0", "--data.test", *world, *start.settings)
        return Job(f"{name}/seed{seed}/start", arguments, None, seed, needs)

    def weights(self, name: str) -> str:
        """The last ones of a run, whether or not it has ended: of a start, of a critic's arm."""
        return str(self.folder / name / "policy" / f"step-{0 if name.endswith('/start') else self.size.critic_steps:06d}")

    def next(self, job: Job) -> Job | None:
        """The job, or what must end before it; None: that is an arm, which comes by itself."""
        for name in job.needs:
            if not (self.folder / name / "done").exists():
                start, _, what = name.partition("/seed")
                return self.next(self.start(start, job.seed)) if what.endswith("/start") else None
        return job

    def job(self, arm: Arm, seed: int) -> Job:
        start, size = STARTS[arm.start], self.size
        needs = [f"{arm.start}/seed{seed}/start"]
        steps = size.critic_steps if arm.start == "critic" else size.steps
        sampled = ("--rollout.prompts", PROMPTS, "--optim.minibatch-prompts", PROMPTS, "--rollout.samples", SAMPLES)
        sampled += ("--rollout.max-new-tokens", NEW_TOKENS)
        common = ["--run.seed", seed, "--model.path", self.weights(needs[0])]
        common += ["--warm-start.steps", 0, "--run.steps", steps, "--optim.lr", "4e-4", "--optim.microbatch-tokens", 4096]
        if arm.start == "critic":
            settings = [*common, "--run.task", SHORT.get(arm.name, ""), "--data.test"]
        else:
            tests = ("--data.test", start.tests, "--data.test-rows", TEST_ROWS, "--data.train", arm.world or start.world)
            settings = [*common, *sampled, *tests, "--fapo.lam", float(arm.lam), *arm.settings]
        if arm.judge:
            judge = f"critic/seed{seed}/{'start' if arm.judge == 'warm' else arm.judge}"
            needs.append(judge)
            settings += ["--genrm.judge", "serve", "--genrm.model", self.weights(judge)]
            settings += ["--genrm.max-tokens", 64, "--genrm.deadline", 1800, 3600]
        return Job(self.path(arm, seed), (start.recipe, *map(str, settings)), arm, seed, tuple(needs))

    def rows(self, wanted: Iterable[tuple[Arm, int]]) -> Iterable[dict[str, Any]]:
        """Of all arms and seeds, as they end. A run that fails is said, and what needs it is left out."""
        under_way: dict[Future[dict[str, Any] | None], str] = {}
        failed, queue = set[str](), self.to_run(wanted)
        with ThreadPoolExecutor(self.parallel) as pool:
            while queue or under_way:
                for arm, seed in list(queue):
                    if len(under_way) >= self.parallel:
                        break
                    job = self.job(arm, seed)
                    first = self.next(job)
                    if failed & {*job.needs, first.folder if first else ""}:
                        queue.remove((arm, seed))
                        failed.add(job.folder)
                        continue
                    if first is None or first.folder in under_way.values():
                        continue
                    if first is job:
                        queue.remove((arm, seed))
                    under_way[pool.submit(self._done, first)] = first.folder
                if not under_way:
                    break  # what is left needs what is not wanted
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    name, row = under_way.pop(future), future.result()
                    if row is None:
                        failed.add(name)
                    elif row:
                        yield row
        if failed:
            raise SystemExit(
                f"error: {len(failed)} runs failed or lack what they need: {', '.join(sorted(failed))}; their log.txt says why"
            )

    def to_run(self, wanted: Iterable[tuple[Arm, int]]) -> list[tuple[Arm, int]]:
        """All but those that are kept and whose weights nothing to run needs."""
        arms = list(wanted)
        jobs = [self.job(arm, seed) for arm, seed in arms]
        kept = {job.folder for job in jobs if job.folder in self.kept}
        for job in jobs:
            if job.folder in kept:
                self.same(self.kept[job.folder], job, "a kept row", "take it out")
        needed = {name for job in jobs if job.folder not in kept for name in job.needs}
        return [own for own, job in zip(arms, jobs, strict=True) if job.folder not in kept - needed]

    def settings(self, job: Job) -> list[str]:
        """As a row has them: it names no machine's folders."""
        return [argument.replace(str(self.folder), "runs/science") for argument in job.arguments]

    def same(self, row: dict[str, Any], job: Job, where: str, cure: str) -> None:
        if row["settings"] != self.settings(job):
            raise SystemExit(f"error: {where} of {job.folder} is of other settings; {cure}, or choose another --folder")

    def _done(self, job: Job) -> dict[str, Any] | None:
        """The row of a job, run where it is not there yet; {} of a warm start, None where it failed."""
        folder = self.folder / job.folder
        file = folder / "row.json"
        if file.is_file():
            row = json.loads(file.read_bytes())
            self.same(row, job, str(file), f"move {folder} away")
            return row if job.arm else {}
        folder.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        process = self.context.Process(target=work, args=(str(folder), job.arguments, job.arm))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{job.folder}: failed (status {process.exitcode}), see {folder}.log", flush=True)
            return None
        if not (folder / "found.json").is_file():  # a run that has saved ends with status 0
            print(f"{job.folder}: was stopped before its end; the same command goes on", flush=True)
            return None
        found = json.loads((folder / "found.json").read_bytes())
        row = {"run": job.folder, "start": job.folder.partition("/")[0], "arm": job.arm.name if job.arm else "start", "seed": job.seed}
        row |= {"quick": self.quick, "settings": self.settings(job)} | found
        row["stamp"] = machine("cpu") | {"seconds": round(time.perf_counter() - start, 1)}
        with whole(file) as beside:
            beside.write_text(json.dumps(row))
        (folder / "done").touch()
        print(f"{job.folder}: {row['stamp']['seconds']:.0f} s" + said(row), flush=True)
        return row if job.arm else {}


def parsed(job: Job) -> Config:
    """The configuration that a job's command line stands for. UserError where the main job would refuse it."""
    return parse_arguments([*job.arguments, "--run.folder", "x", "--run.name", "x"])


def said(row: dict[str, Any]) -> str:
    after = row.get("after") or {}
    return "".join(f"  {name} {after[name]:.3f}" for name in ("right", "sound", "flawed", "exact/unseen") if name in after)


def work(folder: str, settings: tuple[str, ...], arm: Arm | None) -> None:
    """In the forked process: the main job, as its command line would run it on one rank, and what it has come to."""
    path = Path(folder)
    with Path(f"{folder}.log").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(ROOT)
    trains = arm is None or arm.name != "warm" or bool(arm.judge)
    if trains:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = port
        # A machine that is busy with two of these is no hang.
        own = ["--run.folder", str(path.parent), "--run.name", path.name, "--run.patience", "600", "25"]
        sys.argv = ["engine/train.py", *settings, *own]

        from soundrl.engine import train
        from soundrl.engine.launch import launch
        from soundrl.engine.launch.last_words import RANK

        RANK.parent = os.getppid()  # who has imported it is not who waits for this run
        launch.leave_to_ranks()
        launch.run(train.main)
    from critics import of_critic
    from measures import of_policy

    found: dict[str, Any] = {}
    if arm is not None and arm.start == "critic":
        weights = sorted(((path if trains else path.parent / "start") / "policy").glob("step-??????"))[-1]
        found = {"after": of_critic(weights)}
    elif arm is not None:
        found = of_policy(path, float(arm.lam))
    path.mkdir(exist_ok=True)
    (path / "found.json").write_text(json.dumps(found))

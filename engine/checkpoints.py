"""Saving and going on: each rank's rows of weights and moments, written beside training, and the newest whole checkpoint found again.

    copy to the host → training goes on │ a thread writes this rank's rows → rank 0's waits for the seals of all → manifest → rename

Nothing here is a collective of the writing threads: ranks meet through files on the disk that they share, and the main threads tell each
other once a step how it went. A checkpoint that cannot be written is said, counted and given up; the last whole one stays.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from soundrl.engine.files.adapter_folder import other_base
from soundrl.engine.files.checkpoint import (
    MOMENTS,
    WEIGHTS,
    CheckpointError,
    Place,
    Rows,
    checkpoints,
    faults,
    place_of,
    read_manifest,
    read_state,
    rows_file,
    write_manifest,
)
from soundrl.engine.files.tensor_file import Layout, Seal, sync_folder, write_bytes, write_tensors
from soundrl.engine.launch.last_words import remove
from soundrl.engine.memory.moments import STATES, begun, local_rows
from soundrl.engine.ranks import Ranks
from soundrl.engine.trainer import Trainer
from soundrl.fapo.printable import one_line

LOOK = 0.05  # seconds between looks for the seals of other ranks
OLD_LOGPROBS = "old_logprobs.safetensors"

Say = Callable[[str], None]


class Checkpoints:
    """Those of one run, in `folder`. Every method is a collective. `kept` is `run.save`: steps between (unused here), how many of the last
    stay, and the multiple whose steps stay for good (0 = none)."""

    def __init__(self, folder: Path, ranks: Ranks, kept: tuple[int, int, int], say: Say) -> None:
        self.folder, self.ranks, self.kept, self.say = folder, ranks, kept, say
        self.saved: Place | None = None
        """The newest whole one, of what this process has written or read"""
        self.failures = 0
        self._writing: Writing | None = None

    def find(self) -> Path | None:
        """The newest whole checkpoint; every file of it is read by one rank, and what is damaged is said by name and passed over.
        ValueError where there are some and none is whole."""
        said = ""
        for folder in self.ranks.gather(checkpoints(self.folder))[0]:
            if not (said := self._fault(folder)):
                self.saved = place_of(folder)
                return folder
            self.say(f"refused: {said}")
        if said:
            raise ValueError(
                f"run.resume: no checkpoint in {self.folder} is whole (last: {said}); restore one, or begin anew: --run.no-resume"
            )
        return None

    def _fault(self, folder: Path) -> str:
        """The first fault of a checkpoint, on every rank; empty: it is whole."""
        try:
            seals = read_manifest(folder)
            own = next(faults(folder, seals, sorted(seals)[self.ranks.rank :: self.ranks.size]), "")
        except (CheckpointError, OSError) as error:
            own = str(error)
        return self.ranks.first_said(own)

    def save(self, place: Place, trainer: Trainer, state: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Copy what is to be written and let a thread write it; waits for the one before. `files`: what stands in `model/`, of rank 0."""
        self.wait()
        if place == self.saved:
            return
        beside = self.folder / f"{place.name}.part"
        fault = ""
        if self.ranks.main:
            try:
                for old in self.folder.glob("*.part"):
                    remove(old)
                (beside / "model").mkdir(parents=True)
                fault = short_of_room(beside, trainer)
            except OSError as error:
                fault = f"{beside}: {error.strerror}"
        if fault := self.ranks.first_said(fault):  # nobody writes before the folder is there
            if self.ranks.main:
                shutil.rmtree(beside, ignore_errors=True)
            self._failed(place, fault)
            return
        weights, moments, about, steps = staged(trainer, self.ranks)
        head = json.dumps(dict(state) | {"step": place.step, "within": place.within}).encode()
        self._writing = Writing(place, beside, self.ranks)
        self._writing.start(
            weights,
            moments,
            {"first_row": json.dumps(about), "steps": json.dumps(steps)},
            head,
            files,
            trainer.late if place.within else {},
        )

    def tell(self) -> None:
        """How the one under way goes, once a step: a failure on any rank ends it on all."""
        if self._writing is None:
            return
        parts = self.ranks.gather((self._writing.done, self._writing.failure))
        failures = [failure for _, failure in parts if failure]
        if failures or all(done for done, _ in parts):
            self._end(self._writing, failures)

    def wait(self) -> None:
        """Until nothing is under way."""
        if (writing := self._writing) is None:
            return
        if not self.ranks.main:
            writing.thread.join()
        if failure := self.ranks.first_said("" if self.ranks.main else writing.failure):
            writing.given_up.set()  # rank 0's thread waits for seals that will not come
        writing.thread.join()
        failure = failure or self.ranks.first_said(writing.failure)
        self._end(writing, [failure] if failure else [])

    def _end(self, writing: Writing, failures: list[str]) -> None:
        self._writing = None
        writing.given_up.set()
        writing.thread.join()
        self.ranks.barrier()  # nobody writes into what is removed
        if self.ranks.main and not writing.done:
            shutil.rmtree(writing.beside, ignore_errors=True)
        if failures:
            self._failed(writing.place, failures[0])
        else:
            self._whole(writing.place)

    def _failed(self, place: Place, failure: str) -> None:
        self.failures += 1
        last = f"the last whole one is {self.saved.name}" if self.saved else "there is none yet"
        self.say(f"checkpoint {place.name} could not be written: {one_line(failure)}; {last}, the run goes on")

    def _whole(self, place: Place) -> None:
        self.saved = place
        if self.ranks.main:
            for old in superseded(checkpoints(self.folder), self.kept):
                try:
                    shutil.rmtree(old)
                except OSError as error:
                    self.say(f"checkpoint {old} cannot be removed: {error.strerror}")


class Writing:
    """One checkpoint on its way to the disk: this rank's part of it."""

    def __init__(self, place: Place, beside: Path, ranks: Ranks) -> None:
        self.place, self.beside, self.ranks = place, beside, ranks
        self.done, self.failure, self.given_up = False, "", threading.Event()

    def start(self, *what: Any) -> None:
        self.thread = threading.Thread(target=self._run, args=what, name="checkpoint", daemon=True)
        self.thread.start()

    def _run(self, *what: Any) -> None:
        try:
            self._write(*what)
        except OSError as error:
            free = shutil.disk_usage(self.beside.parent).free if self.beside.parent.is_dir() else 0
            where = f" ({error.filename})" if error.filename else ""
            self.failure = f"[rank {self.ranks.rank}] {error.strerror or error}{where}, {free / 2**20:.0f} MiB are free"
        except Exception as error:  # noqa: BLE001 — said by the main thread, which must not wait for seals that will not come
            self.failure = f"[rank {self.ranks.rank}] {type(error).__name__}: {error}"

    def _write(
        self,
        weights: dict[str, Tensor],
        moments: dict[str, Tensor],
        about: dict[str, str],
        state: bytes,
        files: Mapping[str, bytes],
        late: Mapping[int, np.ndarray],
    ) -> None:
        rank, size, seals = self.ranks.rank, self.ranks.size, dict[str, Seal]()
        for part, tensors in ((WEIGHTS, weights), (MOMENTS, moments)) if self.ranks.first_copy else ():
            name = rows_file(part, rank, self.ranks.shards)
            seals[name] = write_tensors(self.beside / name, layouts(tensors), tensors.values(), about)
            tensors.clear()  # as soon as it is on the disk
        if rank == 0:
            for name, content in files.items():
                seals[f"model/{name}"] = write_bytes(self.beside / "model" / name, content)
            if late:
                tensors = {str(index): torch.from_numpy(values) for index, values in late.items()}
                seals[OLD_LOGPROBS] = write_tensors(self.beside / OLD_LOGPROBS, layouts(tensors), tensors.values(), {})
            seals["state.json"] = write_bytes(self.beside / "state.json", state + b"\n")
            for other in range(1, size):
                seals |= self._seals_of(other)
            write_manifest(self.beside, seals)
            for folder in (self.beside / "model", self.beside):
                sync_folder(folder)
            self.beside.rename(self.beside.with_name(self.place.name))
            sync_folder(self.beside.parent)
        else:
            own = self.beside / f"rank-{rank}.json.part"
            write_bytes(own, json.dumps(seals).encode())
            own.rename(own.with_suffix(""))
        self.done = True

    def _seals_of(self, rank: int) -> dict[str, Seal]:
        file = self.beside / f"rank-{rank}.json"
        while not file.exists():
            if self.given_up.wait(LOOK):
                raise OSError(None, "given up, as another rank could not write")
        seals = {name: Seal(*seal) for name, seal in json.loads(file.read_bytes()).items()}
        file.unlink()
        return seals


def layouts(tensors: Mapping[str, Tensor]) -> dict[str, Layout]:
    return {name: Layout(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def superseded(folders: list[Path], kept: tuple[int, int, int]) -> Iterator[Path]:
    """What goes, of checkpoints with the newest first: all but the last ones and the multiples; one in the middle of a step as soon as
    there is a newer one.

    >>> [p.name for p in superseded([Path(f"step-{s}") for s in ("000060", "000050", "000040+1", "000040", "000020")], (10, 2, 20))]
    ['step-000040+1']
    """
    _, last, multiple = kept
    whole = 0
    for number, folder in enumerate(folders):
        place = place_of(folder)
        assert place is not None
        if place.within:
            if number:
                yield folder
            continue
        whole += 1
        if whole > last and not (multiple and place.step % multiple == 0):
            yield folder


def short_of_room(folder: Path, trainer: Trainer) -> str:
    """Why a checkpoint is not even begun: a disk that it fills would stop whoever writes beside it. Empty where there is room, as far as
    can be known: a quota shows only when it is used up."""
    needed = 1.05 * sum(p.numel() for _, p in trainer.policy.model.named_parameters() if p.requires_grad) * 4 * (1 + len(STATES))
    free = shutil.disk_usage(folder).free
    return f"No space left on device: {needed / 2**20:.1f} MiB are needed, {free / 2**20:.1f} are free" if free < needed else ""


def own_rows(model: nn.Module, ranks: Ranks) -> Iterator[tuple[str, nn.Parameter, int]]:
    """(name, parameter, first row) of what this rank holds of each parameter that trains: a frozen base is in its own folder."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, ranks.first_row(parameter.shape[0])


def staged(trainer: Trainer, ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int], dict[str, float]]:
    """This rank's rows of weights and moments on the host, the first row of each, and AdamW's step of each parameter that has taken one.
    Nothing where another replica has the same rows and comes first."""

    def copied(tensor: Any) -> Tensor:
        local = local_rows(tensor.detach())
        host = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)  # pinned: ten times as fast
        return host.copy_(local, non_blocking=True)

    weights, moments, first, steps = dict[str, Tensor](), dict[str, Tensor](), dict[str, int](), dict[str, float]()
    trainer.arrive()
    for name, parameter, row in own_rows(trainer.policy.model, ranks) if ranks.first_copy else ():
        weights[name], first[name] = copied(parameter), row
        state: dict[str, Any] = trainer.optimizer.state.get(parameter, {})
        for kind in STATES if state else ():
            moments[f"{kind}/{name}"], first[f"{kind}/{name}"] = copied(state[kind]), row
            steps[name] = float(state["step"])
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()
    return weights, moments, first, steps


@torch.no_grad()
def restore(folder: Path, trainer: Trainer, ranks: Ranks) -> dict[str, Any]:
    """Fill weights and moments from a checkpoint that has been checked; returns its state. What is wrong on one rank is every rank's
    CheckpointError."""
    fault, state = "", dict[str, Any]()
    try:
        state = read_state(folder)
        if other := other_base(state["trainer"].get("base"), trainer.policy.base):
            raise CheckpointError(f"{folder}: {other}")
        with Rows(folder, WEIGHTS) as weights, Rows(folder, MOMENTS) as moments:
            for name, parameter, first in own_rows(trainer.policy.model, ranks):
                weights.read(name, first, local_rows(parameter.detach()))
                if name not in weights.steps:
                    continue  # never trained: AdamW begins its moments when it is
                kept = begun(trainer.optimizer, parameter)
                kept["step"].fill_(weights.steps[name])
                for kind in STATES:
                    moments.read(f"{kind}/{name}", first, local_rows(kept[kind]))
        if (folder / OLD_LOGPROBS).is_file():
            trainer.late = {int(index): values.numpy() for index, values in load_file(folder / OLD_LOGPROBS).items()}
    except CheckpointError as error:
        fault = str(error)
    if fault := ranks.first_said(fault):
        raise CheckpointError(fault)
    trainer.restore(state["trainer"])
    return state

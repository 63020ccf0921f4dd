"""Checkpoints: written by any number of ranks and read by any other, whole or refused by name, and never fewer than one."""

from __future__ import annotations

import errno
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Alone
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from soundrl.engine import checkpoints as module
from soundrl.engine.checkpoints import Checkpoints, superseded
from soundrl.engine.files.checkpoint import CheckpointError, Place, Rows, checkpoints, place_of, read_manifest, rows_file, write_manifest
from soundrl.engine.files.tensor_file import Layout, sealed, write_bytes, write_tensors
from soundrl.engine.tools import export as tool
from soundrl.engine.tools.export import export, split

RANKS = 2


def written(folder: Path, step: int, seed: int = 0) -> Path:
    """A checkpoint of two ranks with a model of two tensors, as ranks write it."""
    generator = torch.Generator().manual_seed(seed)
    target = folder / Place(step).name
    target.mkdir(parents=True)
    seals = {}
    for rank in range(RANKS):
        for part, kinds in (("weights", ("",)), ("moments", ("exp_avg/", "exp_avg_sq/"))):
            tensors = {f"{kind}{name}": torch.randn(rows, 3, generator=generator) for kind in kinds for name, rows in (("a", 4), ("b", 2))}
            layouts = {name: Layout(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
            first = {name: rank * len(t) for name, t in tensors.items()}
            name = rows_file(part, rank, RANKS)
            seals[name] = write_tensors(target / name, layouts, tensors.values(), {"first_row": json.dumps(first), "steps": '{"a": 2.0}'})
    seals["model/config.json"] = write_bytes(target / "model" / "config.json", b'{"model_type": "opt", "dtype": "float32"}')
    state = {"step": step, "within": 0, "trainer": {"updates": step}, "written": "2026-11-29"}
    seals["state.json"] = write_bytes(target / "state.json", json.dumps(state).encode())
    write_manifest(target, seals)
    return target


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def found(folder: Path) -> tuple[Path | None, list[str]]:
    said: list[str] = []
    return Checkpoints(folder, Alone(), (20, 2, 0), said.append).find(), said  # type: ignore[arg-type]


def test_a_tensor_file_is_a_safetensors_file_and_its_digest_that_of_its_bytes(tmp_path):
    tensors = {"a": torch.randn(5, 3), "none": torch.empty(0, 3), "half": torch.randn(7).bfloat16(), "long": torch.arange(1 << 22).float()}
    path = tmp_path / "x.safetensors"
    seal = write_tensors(path, {n: Layout(t.dtype, tuple(t.shape)) for n, t in tensors.items()}, tensors.values(), {"about": "x"})
    assert seal == sealed(path) and seal.size == path.stat().st_size > 4 * (1 << 22)  # witness: several pieces
    read = load_file(path)
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"about": "x"}


def test_any_number_of_ranks_reads_what_any_number_wrote(torchrun, tmp_path):
    said = torchrun("reshard", 1, root=str(tmp_path), train=2, write="by1")
    digest = said["trained"]
    said |= torchrun("reshard", 3, root=str(tmp_path), read=["by1"], write="by3")
    said |= {f"2 {name}": value for name, value in torchrun("reshard", 2, root=str(tmp_path), read=["by1", "by3"], write="by2").items()}
    for name in ("by1", "2 by1", "2 by3"):
        assert said[name] == digest, name
    whole = {}  # as one rank reads: all rows of each tensor, and what AdamW counts
    for name in ("by1", "by2", "by3"):
        folder = tmp_path / name / "step-000002"
        with Rows(folder, "weights") as weights, Rows(folder, "moments") as moments:
            whole[name] = {tensor: rows.whole(tensor) for rows in (weights, moments) for tensor in rows.pieces} | weights.steps
    assert whole["by1"].keys() == whole["by2"].keys() == whole["by3"].keys() and len(whole["by1"]) > 40
    for name in ("by2", "by3"):
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(whole["by1"][tensor])) for tensor, value in whole[name].items()), (
            name
        )
    assert said["before by1"] != digest and said["updates by1"] == [2, 0]
    assert {int(file.name[8:13]) for file in (tmp_path / "by3" / "step-000002").glob("weights-*")} == {0, 1, 2}  # witness


@pytest.mark.parametrize("what", ["state.json", "manifest.json", "weights-00000", "weights-00001", "moments-00001", "config.json"])
def test_one_flipped_bit_is_found_and_the_one_before_taken(what, tmp_path):
    before, newest = written(tmp_path, 20), written(tmp_path, 40)
    assert found(tmp_path) == (newest, [])
    (file,) = (path for path in files(newest) if path.name.startswith(what))
    whole, dice = file.read_bytes(), random.Random(0)
    for _ in range(60):
        at, bit = dice.randrange(len(whole)), dice.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        taken, (said,) = found(tmp_path)
        assert taken == before and said.startswith("refused: ") and str(newest) in said and file.name.split("-")[0] in said, (at, bit, said)
    file.write_bytes(whole)
    assert found(tmp_path) == (newest, [])  # inverse


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "one byte short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "one byte more": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(damage, tmp_path):
    before = written(tmp_path, 20)
    for name in [path.relative_to(before) for path in files(before)]:
        newest = written(tmp_path, 40)
        if not (name == Path("manifest.json") and damage.startswith("one byte")):  # a line's end: it says the same
            DAMAGE[damage](newest / name)
            taken, (said,) = found(tmp_path)
            assert taken == before and str(newest / name) in said, said
            with pytest.raises(CheckpointError, match=str(newest / name)):
                tool.check(newest)
        shutil.rmtree(newest)


def test_files_of_other_checkpoints_are_refused(tmp_path):
    """A rank's file of another step, ranks swapped, the manifest of another run, a later format, a folder that is half written."""
    before, newest, other = written(tmp_path / "run", 20), written(tmp_path / "run", 40, seed=1), written(tmp_path / "other", 40, seed=2)
    weights = [rows_file("weights", rank, RANKS) for rank in (0, 1)]
    contents = {name: (newest / name).read_bytes() for name in (*weights, "manifest.json")}
    cases = {
        "another step's": (weights[1], (before / weights[1]).read_bytes()),
        "the other rank's": (weights[1], contents[weights[0]]),
        "another run's manifest": ("manifest.json", (other / "manifest.json").read_bytes()),
    }
    for case, (name, content) in cases.items():
        (newest / name).write_bytes(content)
        taken, said = found(tmp_path / "run")
        assert taken == before and str(newest) in said[0] and "SHA-256" in said[0], (case, said)
        (newest / name).write_bytes(contents[name])
    (tmp_path / "run" / "step-000060.part").mkdir()
    (tmp_path / "run" / "step-xxx").mkdir()
    assert found(tmp_path / "run") == (newest, [])
    (newest / "manifest.json").write_text(contents["manifest.json"].decode().replace('"format": 1', '"format": 2'))
    assert "format 2 is none that this version reads (1); update soundrl" in found(tmp_path / "run")[1][0]


def test_where_none_is_whole_nothing_begins_anew_by_itself(tmp_path):
    for step in (20, 40):
        (written(tmp_path, step) / "state.json").unlink()
    with pytest.raises(ValueError, match=r"run\.resume: no checkpoint in .* is whole \(last: .*step-000020/state\.json is missing\)"):
        found(tmp_path)
    assert found(tmp_path / "none") == (None, [])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), min_size=1, unique=True), st.integers(1, 4), st.integers(0, 20))
def test_what_is_kept(places, last, multiple):
    """The last ones, every multiple, and always the newest."""
    folders = [Path(Place(*place).name) for place in sorted(places, reverse=True)]
    gone = list(superseded(folders, (1, last, multiple)))
    stay = [place_of(path) for path in folders if path not in gone]
    whole = [place.step for path in folders if not (place := place_of(path)).within]  # type: ignore[union-attr]
    assert place_of(folders[0]) in stay
    assert {place.step for place in stay if not place.within} >= set(whole[:last])  # type: ignore[union-attr]
    assert {place.step for place in stay if not place.within} == set(whole[:last]) | {s for s in whole if multiple and s % multiple == 0}  # type: ignore[union-attr]
    assert all(place == place_of(folders[0]) for place in stay if place.within)  # type: ignore[union-attr]


class Model:
    """A policy and trainer of one tensor; the moments are there after a step."""

    def __init__(self) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(3, 2))
        self.parameter.to_local = lambda: self.parameter.data  # type: ignore[attr-defined]
        self.policy = SimpleNamespace(model=SimpleNamespace(named_parameters=lambda: [("p", self.parameter)]))
        self.optimizer, self.late, self.arrive = SimpleNamespace(state={}), {}, lambda: None


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """(checkpoints, their words, save(step)): a run of one rank."""
    monkeypatch.setattr(torch.Tensor, "to_local", lambda self: self, raising=False)
    said: list[str] = []
    those = Checkpoints(tmp_path / "checkpoints", Alone(), (1, 2, 0), said.append)  # type: ignore[arg-type]
    model = Model()

    def save(step: int) -> Model:
        with torch.no_grad():
            model.parameter.fill_(step)
        those.save(Place(step), model, {"trainer": {"updates": step}, "written": ""}, {"config.json": b"{}"})  # type: ignore[arg-type]
        return model

    return those, said, save


def test_a_full_disk_is_said_and_survived(saved, monkeypatch):
    those, said, save = saved
    save(1)
    those.wait()
    real = module.write_tensors

    def full(path, layouts, tensors, about):
        real(path, layouts, tensors, about)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_tensors", full)
    save(2)
    those.wait()
    (line,) = said
    assert line.startswith("checkpoint step-000002 could not be written: [rank 0] No space left on device (") and "MiB are free" in line
    assert line.endswith("the last whole one is step-000001, the run goes on")
    assert [path.name for path in those.folder.iterdir()] == ["step-000001"] and those.failures == 1
    monkeypatch.setattr(module, "write_tensors", real)
    save(3)
    those.wait()
    assert [path.name for path in checkpoints(those.folder)] == ["step-000003", "step-000001"] and len(said) == 1


def test_what_has_no_room_is_not_begun(saved, monkeypatch):
    those, said, save = saved
    usage = shutil.disk_usage(those.folder.parent)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=70))
    save(1)
    what = "No space left on device: 0.0 MiB are needed, 0.0 are free"
    assert said == [f"checkpoint step-000001 could not be written: {what}; there is none yet, the run goes on"]
    monkeypatch.undo()
    assert not list(those.folder.iterdir())


def test_what_is_written_is_what_was_there_when_it_was_saved(saved, monkeypatch):
    """Weights move on while the thread writes; and the next save waits for it."""
    import threading

    those, _, save = saved
    go, real = threading.Event(), module.write_tensors
    monkeypatch.setattr(module, "write_tensors", lambda *arguments: (go.wait(60), real(*arguments))[1])
    model = save(5)
    assert not checkpoints(those.folder)  # witness: nothing is written yet
    with torch.no_grad():
        model.parameter.fill_(-1.0)
    go.set()
    save(6)
    those.wait()
    for step in (5, 6):
        with Rows(those.folder / Place(step).name, "weights") as rows:
            assert torch.equal(rows.whole("p"), torch.full((3, 2), float(step)))
        assert read_manifest(those.folder / Place(step).name).keys() >= {"state.json", "model/config.json"}


def test_an_export_in_shards_is_what_transformers_reads(tmp_path, monkeypatch):
    source = written(tmp_path, 20)
    monkeypatch.setattr(tool, "SHARD", 30)
    monkeypatch.setattr(tool, "split", lambda layouts: split(layouts, 30))
    export(source, tmp_path / "out", "bfloat16")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    assert index["metadata"]["total_size"] == sum(load_file(tmp_path / "out" / f)[n].nbytes for n, f in index["weight_map"].items())
    with Rows(source, "weights") as rows:
        for name, file in index["weight_map"].items():
            assert torch.equal(load_file(tmp_path / "out" / file)[name], rows.whole(name).bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_rows_that_are_missing_are_said(tmp_path):
    source = written(tmp_path, 20)
    (source / rows_file("weights", 1, RANKS)).unlink()
    with Rows(source, "weights") as rows, pytest.raises(CheckpointError, match=r"holds 2 of 4 rows of b \(weights\)"):
        rows.read("b", 0, torch.empty(4, 3))


def test_the_command_lists_checks_and_writes(tmp_path, capsys):
    source = written(tmp_path / "run" / "checkpoints", 20)
    tool.main("list", tmp_path / "run")
    assert capsys.readouterr().out.startswith(f"{source}: 20 updates, written by 2 ranks, 0.00 GiB, saved 2026-11-29")
    tool.main("check", source)
    tool.main("write", source, tmp_path / "out", dtype="float32")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert capsys.readouterr().out.endswith(f"{tmp_path}/out: float32, from {source}\n")
    for arguments in (("write", source, tmp_path / "out"), ("write", source), ("list", tmp_path / "out"), ("check", tmp_path)):
        with pytest.raises(SystemExit, match="^error: "):
            tool.main(*arguments)  # type: ignore[arg-type]

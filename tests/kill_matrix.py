"""Every point of `workers/killed.py` × a rank, all ranks and the launcher killed: the restart equals the uninterrupted run, bit for bit.

`make kill-matrix` (about half an hour on two quiet cores), with what else takes long: full disks, judges that die, a node that dies.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import run_worker, start
from fake_judge import MODEL, Handler, Server, find_flaw
from safetensors.torch import load_file
from survival import SMALL, assert_equal, everything, job, rollouts, said, small_disk
from test_nodes import a_node_dies
from test_replicas import run_of, state

from soundrl.engine.files.run_reader import RunReader

sys.path.append(str(Path(__file__).parent / "workers"))

NTH = {  # pass that is killed, of one rank: in step 3 or at its end
    **{"start": 1, "start sampler": 1, "sampling": 70, "sampled": 3, "verifying": 100, "judging": 50, "exchange": 3, "training": 5},
    **{"optimizer step": 6, "after an optimizer step": 5, "sync": 4, "gate": 4, "metrics written": 5, "writing rollouts": 5},
    **{"rollouts written": 7, "trace": 5, "evaluation": 2, "evaluated": 2, "step ended": 3, "checkpoint: weights": 3},
    **{"checkpoint: state": 9, "checkpoint: manifest": 2, "checkpoint: manifest written": 2, "checkpoint: renamed": 3},
    **{"checkpoint: old one half removed": 1, "export": 1, "export: weights": 1, "end": 1},
}
OF_RANK_0 = ("metrics written", "checkpoint: state", "checkpoint: m", "checkpoint: r", "checkpoint: o", "export")
MATRIX = [(point, which) for point in NTH for which in ("1", "all", "launcher") if which != "1" or not point.startswith(OF_RANK_0)]
VLLM = ("--rollout.engine", "vllm", "--rollout.eager")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, dict]:
    out = {}
    for engine, more in (("torch", ()), ("vllm", VLLM)):
        folder = tmp_path_factory.mktemp(engine)
        done = job(folder, *more)
        assert done.returncode == 0, said(done)
        out[engine] = everything(folder / "arith")
    return out


def goes_on(folder: Path, kill: str, expected: dict, *more: str) -> None:
    killed = job(folder, *more, KILL=kill, WITNESS=folder / "witness")
    assert (folder / "witness").exists() and killed.returncode != 0, said(killed)
    done = job(folder, *more)
    assert done.returncode == 0, said(done)
    assert_equal(everything(folder / "arith"), expected)
    assert not [*folder.rglob("*.part"), *folder.glob("arith/underway/step-*"), *folder.glob("arith.*")]


def test_every_point_is_killed():
    from killed import POINTS

    assert NTH.keys() | {"warm start"} == POINTS.keys() and len(SMALL) > 0


def test_a_warm_start_is_stopped_under_the_launcher_and_goes_on(tmp_path):
    settings = (*SMALL, "--warm-start.steps", 4, "--warm-start.batch", 4, "--run.steps", 1)
    whole = job(tmp_path / "whole", settings=settings)
    assert whole.returncode == 0, said(whole)
    stopped = job(tmp_path, settings=settings, KILL="warm start,SIGTERM,2", WITNESS=tmp_path / "witness")
    assert (tmp_path / "witness").exists() and stopped.returncode == 0, said(stopped)
    kept = tmp_path / "arith" / "warm_start" / "step-000002"
    words = f"stopped by SIGTERM after step 2 of the warm start; kept: {kept}; the same command goes on: python tests/workers/killed.py"
    assert stopped.stderr.splitlines()[-1].startswith(words), said(stopped)
    done = job(tmp_path, settings=settings)
    assert done.returncode == 0 and "warm start     4/4" in done.stdout, said(done)
    assert_equal(everything(tmp_path / "arith"), everything(tmp_path / "whole" / "arith"))


@pytest.mark.parametrize(("point", "which"), MATRIX)
def test_with_the_torch_sampler(point, which, uninterrupted, tmp_path):
    goes_on(tmp_path, f"{point},{which},{NTH[point]}", uninterrupted["torch"])


@pytest.mark.parametrize("kill", ["sampling,all,70", "training,1,5", "checkpoint: manifest,all,2", "sync,launcher,4"])
def test_with_vllm(kill, uninterrupted, tmp_path):
    goes_on(tmp_path, kill, uninterrupted["vllm"], *VLLM)


@pytest.fixture(scope="module")
def adapted(torchrun_once, tmp_path_factory) -> tuple[Path, dict]:
    """Whole runs with adapters, see `workers/lora_runs.py`."""
    root = tmp_path_factory.mktemp("adapted")
    names = ["whole", "killed", "stopped", "struck", "mixture"]
    return root, torchrun_once("lora_parts", 1, root=str(root), runs=names)["runs"]


def test_policy_and_judge_as_adapters_of_one_engine(adapted):
    """Killed, and then stopped, within a step."""
    root, ended = adapted
    assert ended["whole"]["status"] == [0], ended["whole"]["said"]
    assert ended["killed"]["status"] == [-9] and (root / "killed").is_dir(), ended["killed"]["said"]
    assert (root / "stopped").is_dir() and "stopped by SIGTERM in step 2" in ended["stopped"]["said"], ended["stopped"]["said"]
    assert ended["struck"]["status"] == [0] and "goes on from" in ended["struck"]["said"], ended["struck"]["said"]
    whole, struck = (root / name / "judged" for name in ("whole", "struck"))
    assert_equal(everything(struck), everything(whole))
    last = "policy/step-000002/adapter/adapter_model.safetensors"
    assert (whole / last).read_bytes() == (struck / last).read_bytes()


def test_of_a_mixture_attention_is_adapted_and_it_says_so(adapted):
    root, ended = adapted
    said = ended["mixture"]["said"]
    assert ended["mixture"]["status"] == [0], said
    assert "8 experts in each of 2 layers, 2 a token, of which" in said and "on q_proj, k_proj, v_proj, o_proj; its experts stay as" in said
    folder = root / "mixed" / "mixture"
    (row,) = (row for row in RunReader(folder).metrics() if "mismatch/gate" in row)
    assert row["mismatch/gate"] <= 1.0001 and row["optim/grad_norm"] > 0 and row["moe/balance"] > 0
    # The export: attention has moved, experts and routers are the base's, bit for bit.
    before, after = (load_file(at / "model.safetensors") for at in (root / "mixture", folder / "policy" / "step-000001"))
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert before.keys() == after.keys() and moved == {name for name in before if "self_attn" in name and "proj" in name}


REPLICAS = (  # point, rank (3 has a part of the second copy), pass: in step 2 of 3 or at its end
    *("sampling,3,6", "exchange,all,2", "training,3,2", "optimizer step,3,2", "after an optimizer step,all,2", "sync,3,3"),
    *("checkpoint: weights,1,3", "checkpoint: state,3,2", "checkpoint: manifest,all,2", "checkpoint: renamed,0,2"),
)


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("replicas")
    (ended,) = run_worker(root, "forked_runs", 1, runs=[run_of(root, "whole", 4, 2, 3)])
    assert ended == {"statuses": [0] * 4, "killed": False}
    return root / "whole" / "arith"


@pytest.mark.parametrize("kill", REPLICAS)
def test_with_replicas(kill, two_by_two, tmp_path):
    """Weights, moments and all figures are those of the run that nothing interrupted, bit for bit, whatever is on the host meanwhile."""
    ways = ("--model.save-memory", "offload", "moments") if ",all," in kill else ()
    runs = [run_of(tmp_path, "killed", 4, 2, 3, kill, *ways), run_of(tmp_path, "killed", 4, 2, 3)]
    killed, again = run_worker(tmp_path, "forked_runs", 1, runs=runs)
    assert killed["killed"] and -9 in killed["statuses"] and again["statuses"] == [0] * 4, (killed, again)
    assert_equal(everything(tmp_path / "killed" / "arith"), everything(two_by_two))
    one, other = (state(run, 3) for run in (two_by_two, tmp_path / "killed" / "arith"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """Norm of the difference by norm, of weights and of each moment."""
    assert one.keys() == other.keys()
    kinds = {name: name.partition("/")[0] if "/" in name else "weights" for name in one}
    pairs = {
        kind: [torch.cat([of[n].double().flatten() for n in one if kinds[n] == kind]) for of in (one, other)] for kind in {*kinds.values()}
    }
    return {kind: float((a - b).norm() / b.norm()) for kind, (a, b) in pairs.items()}


def test_with_replicas_and_ended_on_other_numbers_of_ranks(tmp_path):
    """2 × 2, killed in step 2; on 2 until it is killed in step 3; ended on 4 without copies: the run of 2 × 2 within 1e-6."""
    runs = [
        run_of(tmp_path, "whole", 4, 2, 3),
        run_of(tmp_path, "other", 4, 2, 3, "training,3,2"),
        run_of(tmp_path, "other", 2, 1, 3, "training,1,2"),
        run_of(tmp_path, "other", 4, 1, 3),
    ]
    ended = run_worker(tmp_path, "forked_runs", 1, runs=runs)
    assert ended[0]["statuses"] == [0] * 4 == ended[3]["statuses"], ended
    assert all(ended[i]["killed"] and -9 in ended[i]["statuses"] for i in (1, 2)), ended  # witness
    whole, other = tmp_path / "whole" / "arith", tmp_path / "other" / "arith"
    for step, shards in ((2, 2), (3, 4)):  # witness: written by so many
        assert (other / "checkpoints" / f"step-{step:06d}" / f"weights-00000-of-0000{shards}.safetensors").is_file()
    found = apart(state(other, 3), state(whole, 3))
    assert found["weights"] <= 1e-6 and max(found.values()) <= 1e-5, found  # in moments the order of sums shows more
    assert apart(state(whole, 2), state(whole, 3))["weights"] > 1e-4  # inverse: one step less is another state


def test_a_node_that_dies_costs_a_run_nothing_but_time(tmp_path, monkeypatch):
    """Two nodes as network namespaces."""
    a_node_dies(tmp_path, monkeypatch)


def test_torchrun_starts_it_again_by_itself(uninterrupted, tmp_path):
    """One command, with no flag of ours, even with one that would begin anew."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    command += ["tests/workers/killed.py", "arith", *map(str, SMALL), "--run.folder", str(tmp_path), "--run.no-resume"]
    done = start(command, KILL="training,1,7", WITNESS=str(tmp_path / "witness"))
    assert done.returncode == 0 and (tmp_path / "witness").exists(), said(done)
    assert "goes on from" in done.stdout and "step-000002: 2 of 5 steps are done" in done.stdout, said(done)
    assert_equal(everything(tmp_path / "arith"), uninterrupted["torch"])


@pytest.mark.parametrize(
    "writer", ["sampling,full,70", "writing rollouts,full,5", "metrics written,full,3", "trace,full,3", "export,full,1"]
)
def test_a_full_disk_in_every_writer(writer, uninterrupted, tmp_path):
    """The run stops with one line and loses no whole checkpoint; when there is room again it goes on."""
    with small_disk(tmp_path / "disk", "40m") as disk:
        full = job(disk, KILL=writer, WITNESS=tmp_path / "witness")
        assert (tmp_path / "witness").exists() and (disk / "filler").exists(), said(full)
        assert full.returncode == 1 and "no space left on device" in full.stderr, said(full)
        assert "Traceback" not in full.stderr and not [*disk.rglob("rollouts/**/*.part"), *disk.rglob("policy/*.part")], said(full)
        (disk / "filler").unlink()
        done = job(disk)
        assert done.returncode == 0 and "refused" not in done.stdout, said(done)
        assert_equal(everything(disk / "arith"), uninterrupted["torch"])


def test_a_disk_too_small_for_two_checkpoints(uninterrupted, tmp_path):
    """The first is whole; the others are given up, which is said; the run goes on to its end, and its policy is there."""
    with small_disk(tmp_path / "disk", "13m") as disk:
        done = job(disk)
        assert done.returncode == 0, said(done)
        lost = [line for line in done.stdout.splitlines() if line.startswith("checkpoint step-")]
        assert len(lost) == 2 and "step-000004 could not be written: No space left on device: 7.4 MiB are needed, " in lost[0], said(done)
        assert all(line.endswith("; the last whole one is step-000002, the run goes on") for line in lost)
        assert [path.name for path in (disk / "arith" / "checkpoints").iterdir()] == ["step-000002"]
        assert_equal(everything(disk / "arith"), uninterrupted["torch"])


def test_other_settings_are_refused_and_touch_nothing(uninterrupted, tmp_path):
    assert job(tmp_path).returncode == 0
    changed = job(tmp_path, "--optim.lr", 0.5)
    assert changed.returncode == 2 and "error: run.name arith has step-000005 of a run with optim.lr 0.0002 (now 0.5); " in changed.stderr
    assert_equal(everything(tmp_path / "arith"), uninterrupted["torch"])


def test_a_run_that_is_done_says_so_and_goes_on_where_more_steps_are_asked_for(uninterrupted, tmp_path):
    first = job(tmp_path, "--run.steps", 4)
    assert first.returncode == 0, said(first)
    again = job(tmp_path, "--run.steps", 4)
    assert again.returncode == 0 and "all 4 steps are done, nothing is left; raise --run.steps to go on" in again.stdout, said(again)
    assert "right final answers" in again.stdout and "step    " not in again.stdout  # the table of before and after, and no step
    more = job(tmp_path, "--run.steps", 5, "--optim.microbatch-tokens", 1024)
    assert more.returncode == 0 and "step-000004: 4 of 5 steps are done" in more.stdout, said(more)
    assert_equal(everything(tmp_path / "arith"), uninterrupted["torch"])


def test_a_run_whose_judges_die_keeps_its_state_and_goes_on_when_they_are_back(tmp_path, monkeypatch):
    """The wait ends in the middle of a step; nothing that was sampled or judged is lost."""
    monkeypatch.setattr("fake_judge.FLAW", "7")

    def dying(handler: Handler, number: int) -> None:
        if number == 50:
            server.kill()
        else:
            find_flaw(handler, number)

    def judged(server: Server) -> tuple:
        return ("--genrm.judge", "endpoint", "--genrm.urls", server.url, "--genrm.model", MODEL, "--genrm.deadline", 4, 60)

    server = Server(dying)
    first = job(tmp_path, *judged(server))
    assert len(server.bodies) > 50  # witness: it was asked, and died
    assert first.returncode == 75, said(first)
    (error,) = (line for line in first.stderr.splitlines() if line.startswith("error: "))
    assert "no judge answers, in step " in error and "the same command goes on" in error and "Traceback" not in first.stderr, said(first)
    before, asked = set(rollouts(tmp_path / "arith")), len(server.bodies)
    server.script = find_flaw
    again = server.revive()
    done = job(tmp_path, *judged(again))
    assert done.returncode == 0, said(done)
    whole = Server(find_flaw)
    assert job(tmp_path / "whole", *judged(whole)).returncode == 0
    assert_equal(everything(tmp_path / "arith"), everything(tmp_path / "whole" / "arith"))
    rows = [row for step in (1, 2, 3) for row in RunReader(tmp_path / "arith").rollouts(step)]
    assert {row["verdict"]["kind"] for row in rows if row["verdict"]} == {"sound", "flawed"}
    assert len(again.bodies) + asked <= len(whole.bodies) + 20  # what was judged is not asked again
    assert before < set(rollouts(tmp_path / "arith"))

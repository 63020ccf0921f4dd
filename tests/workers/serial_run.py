"""The main job with a served judge, overlapped and with a serial phase, from the same policy. On CPU nothing sleeps, so the plan's choice
is made here, and a scripted server stands for vLLM's. No oracle measures: evaluations ask the judge too."""

import contextlib
import hashlib
import io
import itertools
import json
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

arguments, out = json.loads(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, arguments["tests"])

from fake_judge import MODEL, SERVED  # noqa: E402

from soundrl.engine import task, train  # noqa: E402
from soundrl.engine.files.run_reader import RunReader  # noqa: E402
from soundrl.engine.judging import judges  # noqa: E402
from soundrl.engine.launch.launch import be_quiet  # noqa: E402
from soundrl.engine.ranks import Ranks  # noqa: E402
from soundrl.engine.recipes import ARITH_SOLUTIONS, arith  # noqa: E402
from soundrl.fapo.task import ReasoningTask  # noqa: E402
from soundrl.genrm.serve.servers import JudgeServers, Worker  # noqa: E402

be_quiet()
task.ReasoningTask = lambda *given, **named: ReasoningTask(*given, **named | {"truth": None})  # type: ignore[assignment,misc]
judges.SERVED_NAME = MODEL
# It calls a line with a 7 flawed.
Worker.command = lambda self: [sys.executable, "-c", SERVED, arguments["tests"], str(self.port), "7"]  # type: ignore[method-assign]
Ranks.stop = lambda self: None  # type: ignore[method-assign]  # the second run is in the same process group

close = JudgeServers.close
witness: list[str] = []


def closing(servers: JudgeServers) -> None:
    with urllib.request.urlopen(f"{servers.workers[0].root}/witness", timeout=1200) as reply:
        witness.extend(kind for kind, _ in itertools.groupby(json.load(reply)))
    close(servers)


JudgeServers.close = closing  # type: ignore[method-assign]


def run(name: str, model: str, warm_start: int) -> dict:
    """What the run left, on rank 0, whose servers they are; nothing elsewhere."""
    judges.serial_phase = lambda config, ranks: "serial phase (small GPU)" if name == "serial" else ""
    small, folder = arith(), Path(arguments["folder"]) / name
    config = replace(
        small,
        model=replace(small.model, path=model),
        data=replace(small.data, test_rows=4),
        warm_start=replace(small.warm_start, steps=warm_start),
        rollout=replace(small.rollout, engine="torch", prompts=8),
        optim=replace(small.optim, minibatch_prompts=8, microbatch_tokens=256),
        genrm=replace(
            small.genrm,
            judge="serve",
            model=arguments["judge"],
            probe=(ARITH_SOLUTIONS, 1, 0.0),
            second=("votes", 0.5),
            max_tokens=64,
            deadline=(60.0, 60.0),
        ),
        run=replace(small.run, name=name, folder=arguments["folder"], steps=2),
    )
    said = io.StringIO()
    witness.clear()
    with contextlib.redirect_stdout(said):
        train.main(config)
    if not witness:
        return {}
    rows = RunReader(folder).metrics()
    steps, evaluations = ([row for row in rows if key in row] for key in ("loss/policy", "eval/arith-test/accuracy"))
    parameters = hashlib.sha256((folder / "policy" / "step-000002" / "model.safetensors").read_bytes()).hexdigest()
    return {"witness": [*witness], "said": said.getvalue(), "parameters": parameters, "steps": steps, "evaluations": evaluations}


first = run("overlapped", "starts/policy", 0)
second = run("serial", "starts/policy", 0)
if first:
    out.write_text(json.dumps({"overlapped": first, "serial": second}))

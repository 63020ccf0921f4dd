"""A rank that has a node for itself: what it sees of the run folder, and the judge that is served on each node.

    python tests/workers/nodes.py '{"folder": …, "own": …, "judge": …, "wait": 300, "checks": true}' out.json

Each rank writes a file (`out-0.json`); `own`: a folder on a disk of each node."""

import hashlib
import json
import os
import socket
import sys
import urllib.request
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

arguments, out = json.loads(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from soundrl.engine import ranks  # noqa: E402


def said(what, *given) -> str:
    try:
        return str(what(*given))
    except ValueError as error:
        return str(error)


def rollout(name: str, sample: int):
    from soundrl.fapo.records import Rollout

    text = f"{'2+2=4' if sample % 2 else '2+2=5'}\n#4\n"
    settings = {"prompt_tokens": (1,), "tokens": (2,), "logprobs": (-1.0,), "finish_reason": "stop", "policy_version": 0}
    return Rollout(prompt_id=name, sample=sample, text=text, **settings)


def main() -> dict:
    ranks.JOIN_SECONDS = arguments.get("wait", ranks.JOIN_SECONDS)
    if not arguments.get("checks", True):
        ranks._check_addresses = lambda *given: None
    try:
        own = ranks.Ranks.start()
    except ValueError as error:
        return {"refused": str(error)}
    from fake_judge import MODEL, SERVED  # what takes seconds to import, once it is needed

    from soundrl.engine.environments.arithmetic.arithmetic import Arithmetic
    from soundrl.engine.files import shared as disks
    from soundrl.engine.files.shared import keeps_checkpoints, shared
    from soundrl.engine.judging import judges
    from soundrl.engine.recipes import RECIPES
    from soundrl.fapo.records import Prompt
    from soundrl.genrm.pool.judge import EndpointJudge
    from soundrl.genrm.serve.servers import TOKEN_ENV, Worker

    disks.SECONDS = 0.5
    judges.SERVED_NAME = MODEL
    Worker.command = lambda self: [sys.executable, "-c", SERVED, str(Path(__file__).resolve().parent.parent), str(self.port)]
    # The second node alone says that its GPU is too small.
    judges.serial_phase = lambda config, ranks: "serial phase (small GPU)" * ranks.node.number  # type: ignore[assignment]
    recipe, folder = RECIPES["arith-genrm"](), Path(arguments["folder"])
    disk = Path(arguments["own"])
    config = replace(
        recipe,
        genrm=replace(recipe.genrm, judge="serve", model=arguments["judge"], max_tokens=64, concurrency=3, workers=(2, 1)),
        run=replace(recipe.run, folder=str(folder)),
    )
    endpoint = replace(config, genrm=replace(config.genrm, judge="endpoint", urls=("http://127.0.0.1:9/v1",), model=MODEL))
    lines: list[str] = []
    found = {
        "node": vars(own.node),
        "blind": [shared(folder, own), shared(disk, own)],
        "checkpoints": [said(keeps_checkpoints, config.run, path, own) for path in (folder, disk)],
        "without": [said(keeps_checkpoints, replace(config.run, save=(0, 1, 0)), path, own) for path in (folder, disk)],
        "left": [path.name for path in disk.iterdir()],
        "endpoint": said(judges.build_judge, endpoint, Arithmetic(endpoint, None), own, lines.append),
    }
    built = judges.build_judge(config, Arithmetic(config, None), own, lines.append)
    judge = built.judge
    assert isinstance(judge, EndpointJudge) and built.phase is not None
    with built.phase.awake(lambda name: nullcontext()):
        prompt = Prompt(id="a", text="2+2", answer="4")
        verdicts = [judge.submit(prompt, rollout("a", sample)).result(120) for sample in range(6)]
    urls = [endpoint.url for endpoint in judge.endpoints]
    witness = [json.load(urllib.request.urlopen(f"{url.removesuffix('/v1')}/witness", timeout=60)) for url in urls]
    found |= {"slots": [worker.slots for worker in judge.pool.workers], "verdicts": [str(verdict) for verdict in verdicts], "said": lines}
    found |= {"host": socket.gethostname(), "urls": urls, "witness": witness, "logs": [str(p) for p in sorted(folder.rglob("genrm-*.log"))]}
    found["token"] = hashlib.sha256(os.environ[TOKEN_ENV].encode()).hexdigest()
    own.barrier()
    built.close()
    own.stop()
    return found


out.with_name(f"out-{os.environ['RANK']}.json").write_text(json.dumps(main()))

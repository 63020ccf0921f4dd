"""Writes what the golden test reads of a run's first step: `python tests/golden/keep.py runs/golden`."""

import json
import sys
from pathlib import Path

from soundrl.engine.files.run_reader import RunReader

KEPT = ("prompt_id", "sample", "text", "finish_reason", "tokens", "logprobs")

rows = RunReader(sys.argv[1]).rollouts(1)
lines = [json.dumps({name: row[name] for name in KEPT}) + "\n" for row in rows]
Path(__file__).with_name("rollouts.jsonl").write_text("".join(lines))

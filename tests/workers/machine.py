"""The main job with a judge that it serves itself, a scripted server in place of vLLM's: `python tests/workers/machine.py arith …`."""

import sys
from pathlib import Path

from soundrl.engine.launch import launch

if __name__ == "__main__":
    launch.leave_to_ranks()

TESTS = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, TESTS)

from fake_judge import MODEL, SERVED  # noqa: E402

from soundrl.engine import train  # noqa: E402
from soundrl.engine.judging import judges  # noqa: E402
from soundrl.genrm.serve.servers import Worker  # noqa: E402

judges.SERVED_NAME = MODEL
Worker.command = lambda self: [sys.executable, "-c", SERVED, TESTS, str(self.port), "7"]  # type: ignore[method-assign]

if __name__ == "__main__":
    launch.run(train.main)

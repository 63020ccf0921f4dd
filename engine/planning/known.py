"""Well-known models by name, so that they are planned with no download: the fields of their public config.json that say a size
(`models.json`, as the models' own pages have them).

A plan alone reads them: a run needs the weights.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def models() -> dict[str, dict[str, Any]]:
    return json.loads(Path(__file__).with_name("models.json").read_text())


def known(path: str) -> str:
    """The full name of the model that `path` names, empty where it is none of these: `Qwen/Qwen3-8B`, or a folder that is not there yet and
    is called like one (`models/Qwen3-8B`)."""
    if path in models():
        return path
    last = Path(path).name
    return next((name for name in models() if name.partition("/")[2] == last), "")


def write_known(name: str, folder: Path) -> Path:
    """`folder` with the config.json of a known model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(models()[name]))
    return folder


def download(path: str, setting: str) -> str:
    """What to say to who would run a name that the plan alone knows; empty for any other path."""
    name = known(path)
    target = f"models/{Path(name).name}"
    words = f"a plan knows {name}, but a run needs its files: hf download {name} --local-dir {target}, then --{setting} {target}"
    return words if name else ""

"""What is named by its import path, `module:name`, as Python's entry points are: a source of rows, an environment."""

from __future__ import annotations

import importlib
import re
from typing import Any

from soundrl.fapo.data.puzzles import PREFIX
from soundrl.fapo.data.rows import DataError

_PATH = re.compile(rf"(?!{PREFIX})\w+(\.\w+)*:\w+", re.ASCII)


def is_named(text: str) -> bool:
    """Whether it has the form of an import path: `package.module:rows`, but not `rows.jsonl`, nor a generated set, `rg:chain_sum`."""
    return _PATH.fullmatch(text) is not None


def named(path: str) -> Any:
    """What stands there. DataError where there is nothing."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{path}: {error}; write package.module:name of something that Python can import") from None

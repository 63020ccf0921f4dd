"""What is named by its import path, as Python's entry points are: `module:name`, or by its file, `path/to/file.py:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from soundrl.fapo.data.puzzles import PREFIX
from soundrl.fapo.data.rows import DataError, shown, shown_path

_PATH = re.compile(rf"(?!{PREFIX})\w+(\.\w+)*:[A-Za-z_]\w*", re.ASCII)
OF_FILE = "soundrl_named_"
"""How the modules of files are called."""
_FILE = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


def is_named(text: str) -> bool:
    """Whether it has the form of an import path: `package.module:rows` or `my/rows.py:rows`, but not `rows.jsonl`, nor `rows.jsonl:0.5`,
    nor a generated set, `rg:chain_sum`."""
    return _PATH.fullmatch(text) is not None or _FILE.fullmatch(text) is not None


def named(path: str) -> Any:
    """What stands there. DataError where there is nothing. A file is run once a process, whatever it is called by."""
    try:
        if (found := _FILE.fullmatch(path)) is not None:
            return getattr(_of_file(found[1]), found[2])
        module, _, name = path.partition(":")
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{path}: {error}; write package.module:name, or file.py:name, of something that Python can import") from None


def _of_file(file: str) -> Any:
    real = os.path.realpath(file)
    if not os.path.isfile(real):
        raise DataError(f"{shown_path(file)}: no such file; check the path")
    known = f"{OF_FILE}{hashlib.blake2b(real.encode('utf-8', 'surrogatepass'), digest_size=6).hexdigest()}_{Path(real).stem}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, real)
        assert spec is not None and spec.loader is not None
        sys.modules[known] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[known]
            raise DataError(f"{shown_path(file)}: cannot be run ({type(error).__name__}: {shown(str(error), 200)}); mend it") from error
    return sys.modules[known]

"""Functions that a policy calls, in the pool's processes: each is found by its path and called with arguments that have been checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from soundrl.fapo.named import named

PREFIX = "tools:"
MOST_CHARACTERS = 16_384
"""Of a result."""
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


class Called:
    """`paths`: a JSON object of the functions' paths by name, behind `PREFIX`. DataError where one is not there."""

    says = ""

    def __init__(self, paths: str) -> None:
        self.tools: dict[str, Callable[..., Any]] = {name: named(path) for name, path in json.loads(paths.removeprefix(PREFIX)).items()}

    def read(self, name: str, arguments: Mapping[str, Any]) -> bool:
        return True

    def answer(self, name: str, arguments: Mapping[str, Any]) -> list[str]:
        """`["said", text]`: a result that is a text as it is, any other as JSON; or `["failed", why]`, in one line."""
        try:
            result = self.tools[name](**arguments)
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001 — whatever a tool raises, the policy is told, and the run goes on
            return ["failed", f"{type(error).__name__}: {_told(error)}"]
        if len(text) > MOST_CHARACTERS:
            return ["failed", f"the result has {len(text)} characters, more than {MOST_CHARACTERS}"]
        return ["said", text.encode("utf-8", "replace").decode("utf-8")]


def _told(error: BaseException) -> str:
    """Its text in a line, without addresses, which differ from run to run."""
    try:
        return _ADDRESS.sub("0x…", " ".join(str(error).split())[:200])
    except Exception:  # noqa: BLE001 — its own text fails
        return "an exception without text"

"""Tools: a task whose policy calls functions, which run in processes of their own, killed at their limit (`rollout.turns`).

    class Shop(ToolEnvironment):
        tools = (price, times)      # functions with annotated parameters and a docstring
        def problems(self, left_out): …

What a policy may call is told by the chat template (`tools=`), or in words where it has no place for them. A call is what Hermes and Qwen
write, at any place of a turn behind its thinking; several are answered in their order, in one reply:

    <tool_call>
    {"name": "price", "arguments": {"item": "pear"}}
    </tool_call>

A call is data, and is never evaluated: it is JSON, its arguments are checked by the function's annotations, and whatever is wrong with it
is a reply in one line, `error: …`. Answers are checked as those of problem files, in the last turn alone.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from soundrl.engine.environments.environment import LostReply
from soundrl.engine.environments.files import ProblemFiles
from soundrl.fapo.data.rows import DataError, shown
from soundrl.fapo.named import OF_FILE, named
from soundrl.fapo.pending import done, then
from soundrl.fapo.records import Prompt, Reply, Rollout
from soundrl.fapo.verify.called import PREFIX
from soundrl.fapo.verify.pool import WorkerPool
from soundrl.fapo.verify.thinking import answer_part

Tool = Callable[..., Any]
Schema = dict[str, Any]
MOST_CALLS = 8
"""In a turn; more are answered by an error."""
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("boolean", (bool,)),
    int: ("integer", (int,)),
    float: ("number", (int, float)),
    str: ("string", (str,)),
    list: ("array", (list,)),
    dict: ("object", (dict,)),
}


class ToolError(ValueError):
    """What is wrong with a call, which is told to the policy; `tool`: its name, where there is such a tool."""

    def __init__(self, text: str, tool: str = "none") -> None:
        super().__init__(text)
        self.tool = tool


class ToolEnvironment(ProblemFiles):
    """Problem files' checks, and `tools` that the policy may call: functions at the top of a module."""

    tools: ClassVar[Sequence[Tool]] = ()

    @cached_property
    def by_name(self) -> dict[str, Schema]:
        if len(self.paths) < len(type(self).tools):
            raise ValueError(f"two tools of {type(self).__name__} share a name; rename one")
        return {tool.__name__: schema(tool) for tool in type(self).tools}

    @cached_property
    def paths(self) -> dict[str, str]:
        """Where processes find the tools."""
        return {tool.__name__: path_of(tool) for tool in type(self).tools}

    @property
    def schemas(self) -> list[Schema]:
        """Of the tools, in OpenAI's form, as chat templates take them."""
        return list(self.by_name.values())

    @cached_property
    def pool(self) -> WorkerPool:
        """Two processes on each rank, which start with the first call."""
        return WorkerPool(work=PREFIX + json.dumps(self.paths), cpu_limit=self.config.rollout.turns[1])

    def respond(self, prompt: Prompt, rollout: Rollout) -> Future[Reply | None] | None:
        begin = rollout.answer_start
        opened = self.thoughts.opened_by(rollout.tokens[:begin] if begin else rollout.prompt_tokens)
        asked = calls(answer_part(rollout.answer_text, opened) or "")
        if not asked:
            return None
        said = [self.said(call) for call in asked[:MOST_CALLS]] + [done(_TOO_MANY)] * (len(asked) > MOST_CALLS)
        return then(gathered(said), in_one)

    def said(self, call: str) -> Future[Reply]:
        """What is replied to one call."""
        try:
            name, arguments = parsed(call, self.by_name)
        except ToolError as error:
            return done(Reply(text=f"error: {error}", tool=error.tool, failed=True))
        return then(self.pool.submit(name, arguments), lambda result: self._meaning(name, result))

    def _meaning(self, name: str, result: Any) -> Reply:
        """Of what the pool says. LostReply, where the machine has ended the call."""
        if result in _LOST:
            raise LostReply(f"a call of {name} was {result}")
        if isinstance(result, str):
            why = _ENDED[result].format(limit=self.pool.cpu_limit)
            return Reply(text=f"error: {name} {why}", tool=name, failed=True)
        kind, text = result
        return Reply(text=text if kind == "said" else f"error: {text}", tool=name, failed=kind != "said")

    def close(self) -> None:
        if "pool" in vars(self):
            self.pool.close()
        super().close()


_TOO_MANY = Reply(text=f"error: more than {MOST_CALLS} calls in a turn", tool="none", failed=True)
_LOST = ("killed", "stuck", "gold", "gold/cpu")
_ENDED = {
    "cpu": "takes more than {limit:g} CPU seconds",
    "memory": "takes too much memory",
    "crash": "brings its process down",
    "exit": "ends its process",
    "forks": "makes too many processes",
}
"""Results of the pool that are properties of a call."""


def in_one(replies: Sequence[Reply]) -> Reply:
    """Several replies of a turn as one.

    >>> in_one([Reply(text="42", tool="times"), Reply(text="error: none", tool="price", failed=True)])
    Reply(text='42\nerror: none', tool='times, price', failed=True)
    """
    tools = ", ".join(reply.tool for reply in replies)
    return Reply(text="\n".join(reply.text for reply in replies), tool=tools, failed=any(reply.failed for reply in replies))


def gathered(futures: Sequence[Future[Any]]) -> Future[list[Any]]:
    """The results in their order, when the last is there; the first exception of these."""
    made: Future[list[Any]] = Future()
    left, lock = len(futures), threading.Lock()

    def count(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            try:
                made.set_result([future.result() for future in futures])
            except Exception as error:  # noqa: BLE001 — whoever waits for it must see it
                made.set_exception(error)

    for future in futures:
        future.add_done_callback(count)
    return made


def path_of(tool: Tool) -> str:
    """Where a process finds the function. ValueError for one that cannot be found by its name."""
    module = tool.__module__
    place = os.path.realpath(sys.modules[module].__file__ or "") if module.startswith(OF_FILE) else module
    path = f"{place}:{tool.__name__}"
    try:
        found = named(path)
    except DataError:
        found = None
    if found is not tool:
        raise ValueError(f"tool {tool.__name__} is no function at the top of a module; processes find it by its name there")
    return path


def calls(text: str) -> list[str]:
    """What stands in each `<tool_call>`, in order; one that is not closed ends with the turn.

    >>> calls('a <tool_call>{"name": "f"}</tool_call> b <tool_call>{')
    ['{"name": "f"}', '{']
    """
    return [found.strip() for found in _CALL.findall(text)]


def parsed(call: str, tools: Mapping[str, Schema]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call, as the tool's schema has them. ToolError where they are not."""
    try:
        said = json.loads(call, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"a call must be JSON, as {EXAMPLE} ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        raise ToolError(f"a call must have a name, as {EXAMPLE}")
    name, arguments = said["name"], said.get("arguments", {})
    if name not in tools:
        raise ToolError(f"{shown(name)} is no tool; there are {', '.join(tools)}")
    if not isinstance(arguments, dict):
        raise ToolError(f"{name}: arguments must be an object, as {EXAMPLE}", name)
    known = tools[name]["function"]["parameters"]
    for key in arguments:
        if key not in known["properties"]:
            raise ToolError(f"{name}: no parameter {shown(key)}; there are {', '.join(known['properties']) or 'none'}", name)
    for key, kind in known["properties"].items():
        if key not in arguments:
            if key in known["required"]:
                raise ToolError(f"{name}: {key} is missing", name)
        elif not fits(arguments[key], kind):
            raise ToolError(f"{name}: {key} must be {wanted(kind)}, not {shown(arguments[key])}", name)
    return name, arguments


EXAMPLE = '{"name": "…", "arguments": {…}}'


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no number")


def schema(tool: Tool) -> Schema:
    """The function's, from its docstring and annotations. ValueError, one line, where it has a parameter that JSON cannot give.

    >>> def times(a: int, b: int = 2) -> int: "A product."
    >>> schema(times)["function"]["parameters"]["properties"], schema(times)["function"]["parameters"]["required"]
    ({'a': {'type': 'integer'}, 'b': {'type': 'integer'}}, ['a'])
    """
    name = getattr(tool, "__name__", type(tool).__name__)
    try:
        hints, parameters = get_type_hints(tool), inspect.signature(tool).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise ValueError(f"tool {name}: {error}; write a function with annotated parameters") from None
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) or parameter.name not in hints:
            raise ValueError(f"tool {name}: parameter {parameter.name} must have a name and an annotation, as x: int")
    if not (about := inspect.cleandoc(tool.__doc__ or "")):
        raise ValueError(f"tool {name} has no docstring; say in it what the function does, as the policy is told")
    known = {
        "type": "object",
        "properties": {p.name: kind_of(hints[p.name], f"tool {name}: parameter {p.name}") for p in parameters},
        "required": [p.name for p in parameters if p.default is p.empty],
    }
    return {"type": "function", "function": {"name": name, "description": about, "parameters": known}}


def kind_of(hint: Any, where: str) -> Schema:
    """JSON schema of an annotation; ValueError, which says `where`, for one that has none."""
    of, parts = get_origin(hint) or hint, get_args(hint)
    if of is Literal:
        return {"enum": list(parts)}
    if of in (Union, UnionType):
        return {"anyOf": [{"type": "null"} if part is NoneType else kind_of(part, where) for part in parts]}
    if of not in _KINDS:
        raise ValueError(f"{where}: {hint} is nothing that JSON has; annotate it as bool, int, float, str, list, dict or Literal")
    items = {"items": kind_of(parts[0], where)} if of is list and parts else {}
    return {"type": _KINDS[of][0]} | items


def fits(value: Any, kind: Schema) -> bool:
    """Whether a value that JSON has given is what its schema says; True is no number, and 1e999 none either."""
    if "anyOf" in kind:
        return any(fits(value, each) for each in kind["anyOf"])
    if "enum" in kind:
        return any(value == each and type(value) is type(each) for each in kind["enum"])
    if kind["type"] == "null":
        return value is None
    types = next(types for name, types in _KINDS.values() if name == kind["type"])
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return all(fits(each, kind["items"]) for each in value) if "items" in kind else True


def wanted(kind: Schema) -> str:
    """In words, as an error has them."""
    if "anyOf" in kind:
        return " or ".join(map(wanted, kind["anyOf"]))
    return f"one of {', '.join(map(repr, kind['enum']))}" if "enum" in kind else kind["type"]

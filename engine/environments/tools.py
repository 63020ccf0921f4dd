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
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from soundrl.engine.environments.files import ProblemFiles
from soundrl.fapo.data.rows import shown
from soundrl.fapo.pending import done
from soundrl.fapo.records import Prompt, Reply, Rollout
from soundrl.fapo.verify.thinking import answer_part

Tool = Callable[..., Any]
Schema = dict[str, Any]
MOST_CALLS = 8
"""In a turn; more are answered by an error."""
MOST_CHARACTERS = 16_384
"""Of a result."""
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
    """What is wrong with a call; told to the policy."""


class ToolEnvironment(ProblemFiles):
    """Problem files' checks, and `tools` that the policy may call: functions at the top of a module."""

    tools: ClassVar[Sequence[Tool]] = ()

    @cached_property
    def by_name(self) -> dict[str, tuple[Tool, Schema]]:
        return {tool.__name__: (tool, schema(tool)) for tool in type(self).tools}

    @property
    def schemas(self) -> list[Schema]:
        """Of the tools, in OpenAI's form, as chat templates take them."""
        return [described for _, described in self.by_name.values()]

    def respond(self, prompt: Prompt, rollout: Rollout) -> Future[Reply | None] | None:
        begin = rollout.answer_start
        opened = self.thoughts.opened_by(rollout.tokens[:begin] if begin else rollout.prompt_tokens)
        asked = calls(answer_part(rollout.answer_text, opened) or "")
        if not asked:
            return None
        said = [self._call(text) if number < MOST_CALLS else _TOO_MANY for number, text in enumerate(asked)]
        return done(Reply(text="\n".join(r.text for r in said), tool=", ".join(r.tool for r in said), failed=any(r.failed for r in said)))

    def _call(self, text: str) -> Reply:
        name = ""
        try:
            name, arguments = parsed(text, self.by_name)
            return Reply(text=printed(self.by_name[name][0](**arguments)), tool=name)
        except Exception as error:  # noqa: BLE001
            return Reply(text=f"error: {error}", tool=name or "none", failed=True)


_TOO_MANY = Reply(text=f"error: more than {MOST_CALLS} calls in a turn", tool="none", failed=True)


def calls(text: str) -> list[str]:
    """What stands in each `<tool_call>`, in order; one that is not closed ends with the turn.

    >>> calls('a <tool_call>{"name": "f"}</tool_call> b <tool_call>{')
    ['{"name": "f"}', '{']
    """
    return [found.strip() for found in _CALL.findall(text)]


def parsed(call: str, tools: dict[str, tuple[Tool, Schema]]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call, as the tool's schema has them. ToolError where they are not."""
    try:
        said = json.loads(call, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"a call must be JSON, as {EXAMPLE}: {shown(str(error), 80)}") from None
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        raise ToolError(f"a call must have a name, as {EXAMPLE}")
    name, arguments = said["name"], said.get("arguments", {})
    if name not in tools:
        raise ToolError(f"{shown(name)} is no tool; there are {', '.join(tools)}")
    if not isinstance(arguments, dict):
        raise ToolError(f"{name}: arguments must be an object, as {EXAMPLE}")
    known = tools[name][1]["function"]["parameters"]
    for key in arguments:
        if key not in known["properties"]:
            raise ToolError(f"{name}: no parameter {shown(key)}; there are {', '.join(known['properties']) or 'none'}")
    for key, kind in known["properties"].items():
        if key not in arguments:
            if key in known["required"]:
                raise ToolError(f"{name}: {key} is missing")
        elif not fits(arguments[key], kind):
            raise ToolError(f"{name}: {key} must be {wanted(kind)}, not {shown(arguments[key])}")
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


def printed(result: Any) -> str:
    """A tool's result as text: a text as it is, anything else as JSON. ToolError where it is neither, or too long."""
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise ToolError(f"the result is a {type(result).__name__}, neither text nor JSON") from None
    if len(text) > MOST_CHARACTERS:
        raise ToolError(f"the result has {len(text)} characters, more than {MOST_CHARACTERS}; ask for less")
    return text.encode("utf-8", "replace").decode("utf-8")

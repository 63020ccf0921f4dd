"""Problem files: values of good rows, one-line errors for bad ones, bounded memory for hostile ones, and the real files."""

from __future__ import annotations

import datetime
import decimal
import importlib
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundrl.fapo.data import files as data
from soundrl.fapo.data import rows
from soundrl.fapo.data.columns import READ
from soundrl.fapo.data.files import INSTRUCTION, boxed_solution, load_prompts
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.reference import plain_reference
from soundrl.fapo.data.rows import DataError, shown

SHARED = Path(__file__).parents[2] / "shared" / "data"
PLAIN = {"problem": "1+1?", "answer": "2"}
CHAT = {
    "data_source": "sums",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1? Box it."}],
    "ability": "MATH",
    "reward_model": {"ground_truth": 2, "style": "rule"},
    "extra_info": {"question": "1+1?", "index": 7},
}


def write_lines(path: Path, *lines: object) -> str:
    """Each line as JSON, or as it is where it is bytes."""
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))
    return str(path)


def write_parquet(path: Path, table: list[dict]) -> str:
    pa = importlib.import_module("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(table), path)
    return str(path)


def error_of(source: str, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts(source, **options)
    message = str(caught.value)
    assert message.isprintable(), "one line, no control characters"
    return message


def as_jsonl(path: Path, table: list[dict]) -> str:
    return write_lines(path.with_suffix(".jsonl"), *table)


def as_list(path: Path, table: list[dict]) -> str:
    path.with_suffix(".json").write_text(json.dumps(table, indent=1), "utf-8")
    return str(path.with_suffix(".json"))


def as_lines_in_json(path: Path, table: list[dict]) -> str:
    return write_lines(path.with_suffix(".json"), *table)


def as_parquet(path: Path, table: list[dict]) -> str:
    return write_parquet(path.with_suffix(".parquet"), table)


FORMATS = pytest.mark.parametrize("write", [as_jsonl, as_list, as_lines_in_json, as_parquet])


@FORMATS
def test_plain_form(write, tmp_path: Path) -> None:
    source = write(
        tmp_path / "sums", [{**PLAIN, "solution": "1+1=2", "level": 3}, {"problem": "é\u2028?", "answer": "-1/2", "solution": None}]
    )
    one, two = load_prompts(source)
    name = source
    assert (one.id, one.text, one.answer, one.solution, one.source) == (f"{name}:1", "1+1?", "2", "1+1=2", "sums")
    assert one.messages == ({"role": "user", "content": "1+1?\n\n" + INSTRUCTION},)
    assert (two.id, two.text, two.answer, two.solution) == (f"{name}:2", "é\u2028?", "-1/2", None)
    assert load_prompts(source, max_rows=1) == [one]
    assert load_prompts(source, instruction="Box it.")[0].messages == ({"role": "user", "content": "1+1?\n\nBox it."},)
    assert load_prompts(source, instruction="")[0].messages == ({"role": "user", "content": "1+1?"},)


@FORMATS
def test_chat_form(write, tmp_path: Path) -> None:
    one, two = load_prompts(write(tmp_path / "chats", [CHAT, {**CHAT, "extra_info": {"question": None, "index": 8}, "data_source": None}]))
    assert one.messages == tuple(CHAT["prompt"]), "messages as they are, no instruction added"
    assert (one.text, one.answer, one.source, one.solution) == ("1+1?", "2", "sums", None)
    assert (two.text, two.source) == ("1+1? Box it.", "chats")


def test_last_user_message_is_the_text(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "name": None}, {"role": "user", "content": "b"}]
    (prompt,) = load_prompts(write_lines(tmp_path / "t.jsonl", {"prompt": turns, "reward_model": {"ground_truth": "x"}}))
    assert prompt.text == "b" and prompt.messages is not None and prompt.messages[1] == {"role": "assistant", "content": ""}


def test_whole_numbers_symlinks_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"problem": "p", "answer": 12345678901234567890}\r\n{"problem": "q", "answer": -3}')
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    prompts = load_prompts(tmp_path / "b.jsonl")
    assert [(prompt.id, prompt.answer) for prompt in prompts] == [
        (f"{tmp_path}/b.jsonl:1", "12345678901234567890"),
        (f"{tmp_path}/b.jsonl:2", "-3"),
    ]


NOT_TEXT = "where a text is expected; write a string"
NO_ANSWER = "where one text or number is expected; write it as a string"
BAD_ROWS = {
    "list": (b"[]", ": a list where an object is expected; write one JSON object a line"),
    "number": (b"7", ": 7 where an object is expected; write one JSON object a line"),
    "null": (b"null", ": null where an object is expected; write one JSON object a line"),
    "blank": (b" ", ": empty line; delete it"),
    "syntax": (b'{"problem": }', ": no valid JSON (Expecting value, character 13); write one JSON object a line"),
    "cut": (b'{"problem": "a', ": no valid JSON (Unterminated string starting at, character 13); write one JSON object a line"),
    "two": (b"{} {}", ": '{}' after the object; write one JSON object a line"),
    "control": (b'{"a": "\x1b[2J"}', ": no valid JSON (Invalid control character at, character 8); write one JSON object a line"),
    "bom": (b"\xef\xbb\xbf{}", ": no valid JSON (Expecting value, character 1); write one JSON object a line"),
    "nan": (b'{"problem": "p", "answer": NaN}', f": answer: nan {NO_ANSWER}"),
    "infinite": (b'{"problem": "p", "answer": -Infinity}', f": answer: -inf {NO_ANSWER}"),
    "no double": (b'{"problem": "p", "answer": 1e999}', f": answer: 1E+999 {NO_ANSWER}"),
    "no decimal": (
        b'{"problem": "p", "answer": 1e99999999999999999999}',
        ": a number whose exponent is out of all bounds; write one JSON object a line",
    ),
    "twice": (b'{"problem": "p", "answer": 2, "answer": 3}', f": answer: a key that stands twice {NO_ANSWER}"),
    "deep": (b"[" * 200_000, ": nested too deeply; write one JSON object a line"),
    "deep objects": (b'{"a":' * 100_000, ": nested too deeply; write one JSON object a line"),
    "no form": ({"query": "q"}, ": problem: missing (fields: 'query'); write problem and answer, or prompt and reward_model"),
    "no fields": ({}, ": problem: missing (fields: none); write problem and answer, or prompt and reward_model"),
    "both": ({**PLAIN, **CHAT}, ": problem and prompt: both are there; keep one, or name it: --data.columns problem=…"),
    "problem type": ({"problem": 3, "answer": "2"}, f": problem: 3 {NOT_TEXT}"),
    "problem empty": ({"problem": " \n", "answer": "2"}, ": problem: empty; write a text"),
    "surrogate": (b'{"problem": "ab\\ud800", "answer": "2"}', ": problem: half of a surrogate pair at character 3; write whole characters"),
    "no answer": ({"problem": "p"}, ": answer: missing; every row needs it"),
    "answer null": ({"problem": "p", "answer": None}, ": answer: missing; every row needs it"),
    "answer empty": ({"problem": "p", "answer": ""}, ": answer: empty; write a text"),
    "answer flag": ({"problem": "p", "answer": True}, f": answer: true {NO_ANSWER}"),
    "answer list": ({"problem": "p", "answer": ["2", "3"]}, f": answer: a list of 2 {NO_ANSWER}"),
    "solution type": ({**PLAIN, "solution": {"a": 1}}, f": solution: an object {NOT_TEXT}"),
    "messages in a text": (
        {"prompt": '[{"role": "user", "content": "p"}]', "answer": "2"},
        """: prompt: '[{"role": "user", "content": "p"}]' is a list of messages, written as a text; write it as a list""",
    ),
    "source type": ({**PLAIN, "data_source": 1}, f": data_source: 1 {NOT_TEXT}"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_row_of_the_plain_form(row: object, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bad.jsonl", PLAIN, PLAIN, row, PLAIN)
    assert error_of(path) == f"{path}:3{message}"
    assert len(load_prompts(path, max_rows=2)) == 2, "rows that were not asked for are not checked"


def chat(**changed: object) -> dict[str, object]:
    return {**CHAT, **changed}


BAD_CHATS = {
    "number": (chat(prompt=7), ": prompt: 7 where chat messages are expected; write a list of role and content"),
    "none": (chat(prompt=[]), ": prompt: a list where chat messages are expected; write a list of role and content"),
    "message": (chat(prompt=["hi"]), ": prompt[0]: 'hi' where an object is expected; write one"),
    "no role": (chat(prompt=[{"content": "a"}]), ": prompt[0].role: null; use one of system, developer, user, assistant, tool"),
    "role": (
        chat(prompt=[{"role": "usr\x07", "content": "a"}]),
        ": prompt[0].role: 'usr\\x07'; use one of system, developer, user, assistant, tool",
    ),
    "content": (chat(prompt=[{"role": "user", "content": [{"text": "a"}]}]), f": prompt[0].content: a list {NOT_TEXT}"),
    "no content": (chat(prompt=[{"role": "system"}]), ": prompt[0].content: missing; every row needs it"),
    "empty": (chat(prompt=[{"role": "user", "content": " "}]), ": prompt[0].content: empty; write a text"),
    "no user": (chat(prompt=[{"role": "system", "content": "a"}]), ": prompt: no message with the role 'user'; add the problem as one"),
    "no reward": (chat(reward_model=None), ": reward_model: null where an object is expected; write one"),
    "no truth": (chat(reward_model={}), ": reward_model.ground_truth: missing; every row needs it"),
    "truth": (chat(reward_model={"ground_truth": [[], "2"]}), f": reward_model.ground_truth: a list of 2 {NO_ANSWER}"),
    "question": (chat(extra_info={"question": 5}), f": extra_info.question: 5 {NOT_TEXT}"),
}


@pytest.mark.parametrize(("row", "message"), BAD_CHATS.values(), ids=BAD_CHATS.keys())
def test_bad_row_of_the_chat_form(row: object, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bad.jsonl", CHAT, row)
    assert error_of(path) == f"{path}:2{message}"


def test_all_unusable_rows_are_named_at_once(tmp_path: Path) -> None:
    """Each at its own line, whatever is wrong with it; `left_out` takes them, and without it one line names the first three of them."""
    lines = [PLAIN, b"{", {"problem": "p"}, PLAIN, b"[]", {**PLAIN, "answer": True}, b"", CHAT]
    path = write_lines(tmp_path / "bad.jsonl", *lines)
    assert error_of(path) == (
        f"5 of 8 rows cannot be used: {path}:2: no valid JSON (Expecting property name enclosed in double quotes, character 2); "
        f"write one JSON object a line | {path}:3: answer: missing; every row needs it | "
        f"{path}:5: a list where an object is expected; write one JSON object a line | and 2 more"
    )
    left_out = LeftOut()
    prompts = load_prompts(path, left_out=left_out)
    assert [prompt.id for prompt in prompts] == [f"{path}:{row}" for row in (1, 4, 8)], "both forms may stand in one file"
    assert [fault.place for fault in left_out.ordered()] == [f"{path}:{row}" for row in (2, 3, 5, 6, 7)]
    load_prompts(path, left_out=left_out)
    assert left_out.counts() == [f"{path}: left out 5 of 8 rows (row 3, answer 2)"], "a file that is read twice counts once"
    packed = write_parquet(tmp_path / "bad.parquet", [PLAIN, {"problem": "", "answer": "1"}, PLAIN, {"problem": "p", "answer": None}])
    with pytest.raises(DataError, match=r"2 of 4 rows cannot be used: .*:2: problem: empty; write a text \| .*:4: answer: missing"):
        load_prompts(packed)


def test_ids_hold_the_path_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b\x1b"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "test.jsonl", PLAIN)
    paths = ("a/test.jsonl", "./a//test.jsonl", "b\x1b/test.jsonl", "a/../a/test.jsonl")
    ids = [load_prompts(path)[0].id for path in paths]
    assert ids == ["a/test.jsonl:1", "a/test.jsonl:1", r"'b\x1b/test.jsonl':1", "a/test.jsonl:1"]


NAN = float("nan")
UNREAD = {
    "nan": {"rate": NAN},
    "infinite": {"rate": -float("inf")},
    "in an object": {"meta": {"rate": [NAN, 1.5], "deep": {"x": NAN}}},
    "generations": {"generations": ["x" * 300_000] * 4},
    "half a surrogate": {"comment": "\ud83d"},
    "long integer": {"seed": 10**5000},
    "other types": {"a": True, "b": None, "c": [], "d": {}, "e": [[1], [2]]},
}


@pytest.mark.parametrize("unread", UNREAD.values(), ids=UNREAD.keys())
@pytest.mark.parametrize("where", ["row", "extra_info", "reward_model", "message"])
def test_a_field_that_is_not_read_stops_nothing(unread: dict, where: str, tmp_path: Path) -> None:
    row = json.loads(json.dumps(CHAT))
    {"row": row, "extra_info": row["extra_info"], "reward_model": row["reward_model"], "message": row["prompt"][1]}[where].update(
        {key: "LONG" if isinstance(value, int) and value > 2**64 else value for key, value in unread.items()}
    )
    text = json.dumps(row).replace('"LONG"', "1" + "0" * 5000)
    for path in (write_lines(tmp_path / "a.jsonl", text.encode()), write_lines(tmp_path / "a.json", f"[{text}]".encode())):
        (prompt,) = load_prompts(path)
        assert (prompt.text, prompt.answer, prompt.messages) == ("1+1?", "2", tuple(CHAT["prompt"]))


def test_an_unread_column_or_leaf_of_parquet_stops_nothing(tmp_path: Path) -> None:
    odd = {
        "rate": NAN,
        "when": datetime.datetime(2025, 1, 1),
        "image": b"\x00\xff",
        "price": decimal.Decimal("1.5"),
        "generations": ["x" * 300_000] * 4,
        "weight": -float("inf"),
    }
    nested = {**CHAT, "extra_info": {**CHAT["extra_info"], **odd}, "reward_model": {**CHAT["reward_model"], **odd}, **odd}
    for table in ([{**PLAIN, **odd}], [nested], [{**CHAT, "extra_info": odd}], [{**CHAT, "extra_info": "text"}]):
        (prompt,) = load_prompts(write_parquet(tmp_path / "a.parquet", table))
        assert prompt.answer == "2"
    bad = write_parquet(tmp_path / "a.parquet", [{**CHAT, "reward_model": odd}])
    assert error_of(bad) == f"{bad}:1: reward_model: null where an object is expected; write one"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"problem": "p", "answer": 1e999, "x": 1e999}', "answer: 1E+999 "),
        ('{"problem": "p", "answer": "1", "x": 1e999, "y": {"a": 1, "a": 2}, "z": 1, "z": 2}', None),
        ('{"problem": "p", "problem": "q", "answer": "1"}', "problem: a key that stands twice "),
        (
            '{"prompt": [{"role": "user", "content": "p"}], "reward_model": {"ground_truth": 1, "ground_truth": 2}}',
            "reward_model.ground_truth",
        ),
        (
            '{"prompt": [{"role": "user", "content": "p", "content": "q"}], "reward_model": {"ground_truth": 1}}',
            "prompt[0].content: a key ",
        ),
        ('{"prompt": [{"role": "user", "content": "p"}], "reward_model": {"ground_truth": 1, "x": 1, "x": 2}}', None),
    ],
)
def test_a_key_that_stands_twice_is_a_fault_where_it_is_read(text: str, fault: str | None, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", text.encode())
    if fault is None:
        assert len(load_prompts(path)) == 1
    else:
        assert error_of(path).startswith(f"{path}:1: {fault}")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("0.5", "0.5"),
        ("0.50", "0.50"),
        ("72.0", "72"),
        ("-3.25", "-3.25"),
        ("1e3", "1000"),
        ("1e-07", "0.0000001"),
        ("2", "2"),
        ('"1/2"', "1/2"),
    ],
)
def test_numbers_are_taken_as_they_are_written(text: str, answer: str, tmp_path: Path) -> None:
    (prompt,) = load_prompts(write_lines(tmp_path / "a.jsonl", b'{"problem": "p", "answer": %s}' % text.encode()))
    assert prompt.answer == answer
    if isinstance(json.loads(text), float):
        packed = load_prompts(write_parquet(tmp_path / "a.parquet", [{"problem": "p", "answer": json.loads(text)}]))
        assert float(packed[0].answer) == float(answer) and "e" not in packed[0].answer


SOLVED = "The bags hold 3*4 = <<3*4=12>>12 nuts.\nWith 2 more that is 12+2 = <<12+2=14>>14 nuts.\n#### 14"
FOURTEEN = [
    *("14", " 14\n", SOLVED, "#### 14", "Answer: 14", "ANSWER = 14", "The answer is 14.", "the final answer is: $14$", "**Answer:** 14"),
    *("**The final answer is 14**", "Final Answer: The final answer is $14$. I hope it is correct.", "3*4=12. 12+2=14. The answer is 14."),
    *(
        '["14"]',
        "['14']",
        "array(['14'], dtype=object)",
        '{"answer": 14}',
        "{'answer': '14'}",
        "14\n14",
        "<answer>14</answer>",
        "Solution: 14",
    ),
    *(
        r"\boxed{14}",
        r"$\boxed{14}$",
        r"So there are $\boxed{14}$ nuts.",
        "$14$",
        r"\(14\)",
        r"\[14\]",
        '"14"',
        "`14`",
        "**14**",
        "答案：14",
    ),
    *("3*4 = 12\n12+2 = 14\nAnswer: 14", '<answer>["14"]</answer>', ["14"], [14], [["14"]], {"answer": "14"}),
]


@pytest.mark.parametrize("answer", FOURTEEN, ids=map(str, range(len(FOURTEEN))))
def test_references_are_taken_out_of_their_wrapping(answer: object, tmp_path: Path) -> None:
    plain, chat = {"problem": "p", "answer": answer}, {**CHAT, "reward_model": {"ground_truth": answer}}
    for path in (write_lines(tmp_path / "a.jsonl", plain, chat), write_parquet(tmp_path / "a.parquet", [chat])):
        prompts = load_prompts(path)
        assert {prompt.answer for prompt in prompts} == {"14"}


OWN_SPELLING = [
    *(
        "14.",
        "$14",
        "(2, 3)",
        "[14]",
        "[1,2]",
        "{1, 2}",
        "x = 14",
        "14 cm",
        "Yes",
        "None",
        "f'(x)",
        "$1$ and $2$",
        "No answer: 5",
        "Answer",
    ),
    *(
        r"\left\{ x \mid x > 2 \right\}",
        "\\begin{pmatrix}\n1\\\\2\n\\end{pmatrix}",
        r"\text{The answer is } 4",
        "1,400",
        "a < b > c",
        "A) 14",
    ),
]


@pytest.mark.parametrize("answer", OWN_SPELLING)
def test_what_is_no_wrapping_keeps_its_spelling(answer: str) -> None:
    assert plain_reference(answer) == answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('["14", "15"]', "is a list, an object or a missing value, not one answer"),
        ('{"answer": "14", "unit": "cm"}', "is a list, an object or a missing value, not one answer"),
        ("('14',)", "is a list, an object or a missing value, not one answer"),
        ("nan", "is a list, an object or a missing value, not one answer"),
        ("14\n15", "has several lines, of which none is marked as the answer"),
        ("Ana has bags of nuts " * 5, "has 25 words, which no boxed answer repeats"),
        (["14", "15"], "a list of 2 where one text or number is expected"),
        ([], "a list of 0 where"),
        ({"x": 14}, "an object where"),
        ("<answer></answer>", "empty; write a text"),
    ],
)
def test_references_of_several_readings_are_refused(answer: object, words: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"problem": "p", "answer": answer})
    assert error_of(path).startswith(f"{path}:1: answer: ") and words in error_of(path)


def test_the_forms_of_public_sets(tmp_path: Path) -> None:
    rows = [
        {"question": "Ana?", "answer": SOLVED},  # openai/gsm8k
        {"prompt": "1+1?", "solution": "2", "data_source": "math_dapo", "reward_model": {"ground_truth": "2"}},  # DAPO-Math-17k-Processed
        {"prompt": "1+1?", "solution": "2"},
        {"problem": "1+1?", "answer": "2", "solution": ""},  # DeepScaleR
        {"problem": "1+1?", "answer": "2", "solution": " \n"},
    ]
    gsm8k, dapo, bare, *deep = load_prompts(write_lines(tmp_path / "a.jsonl", *rows))
    assert (gsm8k.text, gsm8k.answer, gsm8k.solution) == ("Ana?", "14", SOLVED)
    assert boxed_solution(gsm8k.solution or "", gsm8k.answer).endswith("14 nuts.\n\n\\boxed{14}")
    assert (dapo.text, dapo.answer, dapo.solution, dapo.source) == ("1+1?", "2", None, "math_dapo") and bare.answer == "2"
    assert dapo.messages == ({"role": "user", "content": f"1+1?\n\n{INSTRUCTION}"},)
    assert [(prompt.answer, prompt.solution) for prompt in deep] == [("2", None)] * 2


def test_own_ids_must_be_unique(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "ids.jsonl", {**PLAIN, "id": "a"}, {**PLAIN, "id": 3}, {**PLAIN, "id": "a"})
    assert error_of(path) == f"{path}:3: id: 'a' already stands in row 1; make ids unique or leave them out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", ": empty list; it needs at least one row"),
        ("[", ":1: no valid JSON (Expecting value, character 1); write one list of JSON objects"),
        ('[{"problem": "p", "answer": "a"}, 5]', ":2: 5 where an object is expected; write one list of JSON objects"),
        ('[{"problem": "p", "answer": "a"} {}]', ":1: '{}]' after the object; write one list of JSON objects"),
        ('[{"problem": "p", "answer": "a"}', ":1: '' after the object; write one list of JSON objects"),
        ('[{"problem": "p", "answer": "a"},]', ":2: no valid JSON (Expecting value, character 1); write one list of JSON objects"),
        ('[{"problem": "p", "answer": "a"}] x', ":1: 'x' after the list; write one list of JSON objects"),
        ("[" * 100_000, ":1: nested too deeply; write one list of JSON objects"),
        ("   ", ":1: empty line; delete it"),
    ],
)
def test_bad_lists(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    assert error_of(str(path)) == f"{path}{message}"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([PLAIN, {"problem": "p", "answer": None}], ":2: answer: missing; every row needs it"),
        ([{"problem": "p", "answer": float("nan")}], f":1: answer: nan {NO_ANSWER}"),
        ([{"problem": b"p", "answer": "1"}], f":1: problem: b'p' {NOT_TEXT}"),
        (
            [{"query": "p"}],
            ": no column called problem, question, prompt (its columns: 'query'); name it: --data.columns problem=… answer=…",
        ),
        ([PLAIN, PLAIN, {"problem": "", "answer": "1"}], ":3: problem: empty; write a text"),
    ],
)
def test_bad_parquet_rows(table: list[dict], message: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "bad.parquet", table)
    assert error_of(path) == path + message


def test_parquet_with_invalid_utf8_names_the_row(tmp_path: Path) -> None:
    pa = importlib.import_module("pyarrow")
    from pyarrow import parquet

    texts = pa.array([b"ok"] * 1500 + [b"\xff\xfe"]).view(pa.string())
    parquet.write_table(pa.table({"problem": texts, "answer": ["1"] * 1501}), tmp_path / "t.parquet")
    message = error_of(str(tmp_path / "t.parquet"))
    assert message == f"{tmp_path}/t.parquet:1501: no valid UTF-8 (invalid start byte); write texts as UTF-8"


def test_paths_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "zeros.jsonl").symlink_to("/dev/zero")
    write_lines(tmp_path / "rows.tsv", PLAIN)
    (tmp_path / "text.parquet").write_text("hello")
    assert error_of("gone.jsonl") == "gone.jsonl: no such file; check the path, or name a generated data set as rg:<name>"
    assert error_of("a\x1b\n.jsonl").startswith(r"'a\x1b\n.jsonl': no such file")
    assert error_of("a\0.jsonl") == r"'a\x00.jsonl': embedded null byte; check the path"
    assert error_of("empty.jsonl") == "empty.jsonl: empty file; it needs at least one row"
    assert error_of("folder.jsonl") == "folder.jsonl: a folder without .parquet, .jsonl, .json, .csv files; name one that has some"
    assert error_of("pipe.jsonl") == "pipe.jsonl: a device, pipe or socket; name a regular file"
    assert error_of("zeros.jsonl") == "zeros.jsonl: a device, pipe or socket; name a regular file"
    assert error_of("loop.jsonl").startswith("loop.jsonl: Too many levels of symbolic links")
    assert error_of("rows.tsv") == "rows.tsv: unknown suffix '.tsv'; use .jsonl, .json, .csv or .parquet, unpacked"
    assert error_of("text.parquet").startswith("text.parquet: no valid Parquet after row 0 (")
    assert error_of(write_parquet(tmp_path / "none.parquet", [PLAIN][:0])).endswith("none.parquet: no rows; it needs at least one")
    assert error_of("rows.tsv", max_rows=0) == "max_rows=0; use 1 or more, or None for all rows"


def test_huge_lines_cost_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    write_lines(path, PLAIN)
    with open(path, "ab") as file:
        file.truncate(1 << 30)  # a line of 1 GiB zeros that takes no space on disk
    tracemalloc = importlib.import_module("tracemalloc")
    tracemalloc.start()
    try:
        assert error_of(str(path)) == f"{path}:2: line longer than 16777216 bytes; write one JSON object a line"
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    longest = b'{"problem": "p", "answer": "' + b"7" * ((1 << 24) - 30) + b'"}'
    assert len(longest) == 1 << 24 and len(load_prompts(write_lines(tmp_path / "fits.jsonl", longest))) == 1
    assert ":1: line longer" in error_of(write_lines(tmp_path / "over.jsonl", longest + b" "))


def test_limits_of_lists_parquet_and_totals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, packed = as_list(tmp_path / "l", [PLAIN, {**PLAIN, "solution": "s" * 2000}]), as_parquet(tmp_path / "p", [PLAIN] * 1000)
    monkeypatch.setattr(rows, "MAX_ROW_CHARS", 1000)
    long = as_parquet(tmp_path / "q", [PLAIN, {"problem": "x" * 1001, "answer": "1"}])
    assert error_of(long) == f"{long}:2: texts longer than 1000 characters; shorten the row"
    monkeypatch.setattr(rows, "MAX_LIST_BYTES", 100)
    assert error_of(listed) == f"{listed}: list longer than 100 bytes; write it as .jsonl, an object a line"
    monkeypatch.setattr(data, "MAX_TOTAL_CHARS", 5000)
    assert error_of(packed).endswith("the file's texts exceed 5000 characters; split the file")


def test_parquet_bombs_end_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of kilobytes: 200,000 times one text of 100 kB (20 GB), and one text of 1 GB."""
    pa = importlib.import_module("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "bomb.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 100_000]))
    parquet.write_table(pa.table({"problem": text, "answer": pa.array(["1"] * 200_000)}), path)
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(data, "MAX_TOTAL_CHARS", 1 << 26)
    assert error_of(str(path)).endswith("the file's texts exceed 67108864 characters; split the file")
    parquet.write_table(pa.table({"problem": ["p", "x" * (1 << 25)], "answer": ["1", "2"]}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    assert error_of(str(path)) == f"{path}:2: texts longer than 1048576 characters; shorten the row"
    assert len(load_prompts(path, max_rows=1)) == 1


def test_broken_files_never_crash(tmp_path: Path) -> None:
    """Flipped and cut bytes end in rows or in a `DataError`, in all formats."""
    generator = random.Random(0)
    for write, tries in ((as_jsonl, 500), (as_list, 500), (as_parquet, 500)):
        whole = Path(write(tmp_path / "whole", [PLAIN, {**PLAIN, "problem": "é" * 40}] * 3))
        refused = 0
        for index in range(tries):
            content = bytearray(whole.read_bytes())
            for _ in range(generator.randint(1, 3)):
                content[generator.randrange(len(content))] = generator.randrange(256)
            broken = tmp_path / f"broken{whole.suffix}"
            broken.write_bytes(content[: generator.randrange(1, len(content) + 1)] if index % 4 == 0 else content)
            try:
                load_prompts(broken)
            except DataError as error:
                refused += 1
                assert str(error).isprintable()
        assert refused > tries // 4, "the faults must be real"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "question", "ground_truth", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(row=st.dictionaries(st.sampled_from(READ), JSON_VALUES, max_size=6), base=st.sampled_from([PLAIN, CHAT, {}]))
def test_any_row_is_a_prompt_or_a_data_error(row: dict, base: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    try:
        (prompt,) = load_prompts(write_lines(path, {**base, **row}))
    except DataError as error:
        assert str(error).startswith((f"{path}:1: ", f"{path}: no column called ")) and str(error).isprintable()
    else:
        assert prompt.text.strip() and prompt.answer.strip() and prompt.messages


def test_shown_is_short_and_one_line() -> None:
    assert shown("a\n\x1b[31m\u202e") == r"'a\n\x1b[31m\u202e'"
    assert shown("x" * 100) == "'" + "x" * 60 + "'…" and len(shown(10**2000)) == 61
    assert [shown(value) for value in (None, True, [1], {"a": 1}, 2)] == ["null", "true", "a list", "an object", "2"]


def test_boxed_solution() -> None:
    assert boxed_solution("A 2+3=<<2+3=5>>5.\n\n  B $<<5*2=10>>10 \n#### 1,000", "1000") == "A 2+3=5.\n\nB $10\n\n\\boxed{1000}"
    for solution, answer, message in [
        ("A.\n#### 5", "6", "ends in '5' but the answer is '6'"),
        ("2+3=<<2+3=5", "5", "mark not closed"),
        ("#### 5", "5", "no step"),
        (" \n", "5", "no step"),
    ]:
        with pytest.raises(ValueError, match=message):
            boxed_solution(solution, answer)


@pytest.fixture
def puzzles():
    importlib.import_module("reasoning_gym")
    return load_prompts


def test_generated_problems_follow_from_seed_and_settings(puzzles, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random.getstate()
    one = puzzles("rg:chain_sum?size=5&seed=3")
    assert random.getstate() == state, "the global generator is left alone"
    assert [prompt.id for prompt in one] == [f"rg:chain_sum?seed=3:{index}" for index in range(5)]
    assert puzzles("rg:chain_sum?seed=3", max_rows=5) == one == puzzles("rg:chain_sum?size=9&seed=3")[:5]
    assert {prompt.text for prompt in one}.isdisjoint(prompt.text for prompt in puzzles("rg:chain_sum?size=5&seed=4")), (
        "seeds share problems"
    )
    assert one[0].messages == ({"role": "user", "content": f"{one[0].text}\n\n{INSTRUCTION}"},) and one[0].source == "rg:chain_sum"
    short = puzzles("rg:chain_sum?size=20&max_terms=2")
    assert short[0].id == "rg:chain_sum?max_terms=2&seed=0:0"
    for prompt in short:
        left, sign, right = prompt.text.removesuffix(" =").split()[-3:]
        assert int(prompt.answer) == int(left) + int(right) * {"+": 1, "-": -1}[sign]
    assert all(prompt.answer.lstrip("-").isdigit() for prompt in puzzles("rg:gsm_symbolic?size=20"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rg:chain_sm", "'rg:chain_sm': no data set of reasoning-gym has this name; did you mean chain_sum"),
        ("rg:chain_sum?sede=1", "rg:chain_sum: no setting is named 'sede'; did you mean seed"),
        ("rg:chain_sum?seed=x", "rg:chain_sum: seed='x' is no int; its default is 0"),
        ("rg:chain_sum?seed=1&seed=2", "rg:chain_sum: seed is set twice; keep one"),
        ("rg:chain_sum?size", "rg:chain_sum: 'size' is no list of settings; write ?size=1000&seed=0"),
        ("rg:chain_sum?size=0", "rg:chain_sum: size=0; use 1 … 1000000"),
        ("rg:chain_sum?seed=-1", "rg:chain_sum: seed=-1; use 0 or more"),
        ("rg:chain_sum?max_terms=1", "rg:chain_sum?max_terms=1&seed=0: reasoning-gym refuses these settings ("),
        ("rg:composite", "rg:composite?seed=0: reasoning-gym refuses these settings ("),
        ("rg:acre?size=20000", "rg:acre: size=20000; use 1 … 2000"),
        (
            "rg:polynomial_multiplication",
            "rg:polynomial_multiplication: its problems depend on Python's hash seed; start Python with PYTHONHASHSEED=0",
        ),
    ],
)
def test_generated_problems_that_are_refused(puzzles, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    assert error_of(name).startswith(message)


def test_hash_dependent_problems_with_a_fixed_hash_seed(puzzles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(puzzles("rg:polynomial_multiplication?size=3")) == 3


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k-train", 7473),
        ("gsm8k-test", 1319),
        ("math500", 500),
        ("aime24", 30),
        ("aime25", 30),
        ("deepmath-5k", 4994),
        ("fapo-critic-100", 100),
    ],
)
def test_real_files(name: str, count: int) -> None:
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    prompts = load_prompts(path)
    assert len(prompts) == count == len({prompt.id for prompt in prompts})
    if name.startswith("gsm8k"):
        for prompt in prompts:
            assert prompt.solution is not None
            target = boxed_solution(prompt.solution, prompt.answer)
            assert "<<" not in target and "\n\n\n" not in target and target.endswith(f"\n\\boxed{{{prompt.answer}}}")
    if name == "fapo-critic-100":
        assert {prompt.source for prompt in prompts} == {"fapo_critic"} and prompts[0].answer == "-1"
        assert all(prompt.messages and prompt.messages[0]["content"] == prompt.text for prompt in prompts)

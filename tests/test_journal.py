"""Files of results that go on after an interruption, and what is refused in them."""

import json
import os
import signal
import subprocess
import sys

import pytest

from soundrl.genrm.journal import Journal, digest

MADE = {"model": "m", "sampling": (1.0, 2)}


def journal(path, made_from=MADE) -> Journal:
    return Journal(path, made_from, "was begun with other arguments")


@pytest.fixture
def begun(tmp_path):
    """Three records, of whose text nothing can be taken for the end of a line."""
    path = tmp_path / "deep" / "labels.jsonl"
    with journal(path) as work:
        for number in range(3):
            work.add({"id": f"row {number}", "said": "a\nb\r\x85\u2028é"})
    return path


def test_what_was_written_is_known_again(begun):
    before = begun.read_bytes()
    with journal(begun) as work:
        assert list(work.known) == ["row 0", "row 1", "row 2"] and work.known["row 1"]["said"] == "a\nb\r\x85\u2028é"
        work.add({"id": "row 1", "said": "another time"})
    assert begun.read_bytes().startswith(before)  # nothing is written twice
    with journal(begun) as work:
        assert work.known["row 1"]["said"] == "another time" and len(work.known) == 3


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_half_a_line_is_dropped(begun, lines):
    """Of the first line as of any other."""
    content = begun.read_bytes().splitlines(keepends=True)
    whole = b"".join(content[:lines])
    begun.write_bytes(whole + content[lines][:-5])
    with journal(begun) as work:
        assert len(work.known) == max(lines - 1, 0)
        work.add({"id": "next"})
    assert begun.read_bytes().startswith(whole)
    with journal(begun) as work:
        assert len(work.known) == max(lines, 1)


DAMAGES = {
    "no JSON": (2, b'{"id": "row 1", "sa\n', ":3: is damaged (b'"),
    "no UTF-8": (2, b"\xff\xfe\n", ":3: is damaged"),
    "zeros": (1, bytes(40) + b"\n", ":2: is damaged"),
    "no object": (3, b"[1]\n", ":4: is damaged"),
    "no id": (3, b'{"verdict": 1}\n', ":4: is damaged"),
    "another version": (0, b'{"model": "m", "sampling": [1.0, 2]}\n', "was begun by another version of soundrl"),
    "no first line": (0, b"\n", "was begun by another version of soundrl"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_with_its_place_and_left_as_it_is(begun, name):
    number, line, words = DAMAGES[name]
    content = begun.read_bytes().splitlines(keepends=True)
    content[number] = line
    begun.write_bytes(b"".join(content))
    for _ in range(2):  # the second time as well: it was closed
        with pytest.raises(ValueError) as refused:
            journal(begun)
        assert str(begun) in str(refused.value) and words in str(refused.value) and "\n" not in str(refused.value)
    assert begun.read_bytes() == b"".join(content)


def test_what_it_was_made_from_is_compared_and_what_differs_is_named(begun):
    with pytest.raises(ValueError, match=r"labels.jsonl was begun with other arguments \(another model, seed\)"):
        journal(begun, {"model": "n", "sampling": [1.0, 2], "seed": 1})
    journal(begun, {"model": "m", "sampling": [1.0, 2]}).close()
    assert digest(["a", 1]) == digest(("a", 1)) != digest(["a", "1"])


def test_two_processes_do_not_write_one_file(begun):
    with journal(begun), pytest.raises(ValueError, match="is being written by another process"):
        journal(begun)
    journal(begun).close()  # inverse
    code = (
        "import sys, time; from pathlib import Path; from soundrl.genrm.journal import Journal\n"
        "work = Journal(Path(sys.argv[1]), {'model': 'm', 'sampling': [1.0, 2]}, '')\n"
        "work.add({'id': 'of a child'})\n"
        'work.sink.write(b\'{"id": "half\')\n'
        "work.sink.flush()\n"
        "print(len(work.known), flush=True)\n"
        "time.sleep(1e6)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(begun)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"4\n"  # witness
        with pytest.raises(ValueError, match="is being written by another process"):
            journal(begun)
        os.kill(child.pid, signal.SIGKILL)
    with journal(begun) as work:  # it went with the process, and so did its half line
        assert work.known["of a child"] and len(work.known) == 4
    assert all(json.loads(line) for line in begun.read_text().splitlines())

"""A bundle holds the very bytes that the server answers, for the steps that were asked for, and is written only where nothing else lies."""

import json
import re

import pytest
from test_view_guard import Asked
from view_runs import write_run

from soundrl.view import bundle as bundling
from soundrl.view.bundle import bundle, steps_in
from soundrl.view.runs import Runs


@pytest.fixture
def root(tmp_path):
    write_run(tmp_path / "runs" / "one")
    write_run(tmp_path / "runs" / "sweep" / "a b", steps=2)
    return tmp_path / "runs"


def test_each_file_is_what_the_server_answers(root, tmp_path, monkeypatch):
    page = tmp_path / "made"
    page.mkdir()
    (page / "index.html").write_text('<meta name="base" content="api"><script src="app.js"></script>')
    (page / "app.js").write_text("1")
    (page / "notes.bin").write_text("not of the page")
    monkeypatch.setattr(bundling, "PAGE", page)
    said = bundle(Runs(root), "2-3", tmp_path / "out")
    files = {str(file.relative_to(tmp_path / "out" / "data")): file.read_bytes() for file in (tmp_path / "out" / "data").rglob("*.json")}
    assert re.match(rf"{len(files)} files, ", said)
    assert {
        "runs.json",
        "one/run.json",
        "one/step-000002/train.json",
        "one/step-000003/anatomy.json",
        "one/find-texts-2.json",
    } <= files.keys()
    assert {"one/step-000003/eval/group-0.json", "sweep=2Fa=20b/step-000002/train/tokens-2-3.json"} <= files.keys()
    assert not any("step-000001" in name or "step-000000" in name for name in files)
    asked = Asked(root)
    try:
        for name, content in files.items():
            status, _, body = asked(f"/api/{name}")
            if name.endswith("/run.json"):  # its links lead to the bundle's steps alone
                here, there = json.loads(content).pop("steps"), json.loads(body).pop("steps")
                assert here == {kind: [step for step in steps if step in (2, 3)] for kind, steps in there.items()} != there
                body, content = (json.dumps(json.loads(each) | {"steps": None}) for each in (body, content))
            assert status == 200 and body == content, name
    finally:
        asked.stop()
    assert json.loads(files["one/find-texts-2.json"])[1][:2] == [0, 1]
    # Its page asks the files beside it, and is otherwise the same.
    assert (tmp_path / "out" / "index.html").read_text() == '<meta name="base" content="data"><script src="app.js"></script>'
    assert (tmp_path / "out" / "app.js").read_text() == "1" and not (tmp_path / "out" / "notes.bin").exists()


def test_it_is_written_anew_over_an_earlier_one_alone(root, tmp_path):
    out, runs = tmp_path / "out", Runs(root)
    bundle(runs, "2", out)
    bundle(runs, "3", out)
    assert (out / "data" / "one" / "step-000003").is_dir() and not (out / "data" / "one" / "step-000002").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").mkdir()
    (tmp_path / "mine" / "data" / "thesis.txt").write_text("…")
    with pytest.raises(ValueError, match="is there and is no bundle"):
        bundle(runs, "2", tmp_path / "mine")
    assert (tmp_path / "mine" / "data" / "thesis.txt").read_text() == "…"


@pytest.mark.parametrize(("said", "steps"), [("1-3,8", [1, 2, 3, 8]), ("0", [0]), (" 4 , 5-5", [4, 5])])
def test_steps_as_they_are_written(said, steps):
    assert sorted(steps_in(said)) == steps


@pytest.mark.parametrize("said", ["", "a", "3-1", "1-", "-1", "1-99999999"])
def test_what_are_no_steps(said):
    with pytest.raises(ValueError, match="steps are written as"):
        steps_in(said)

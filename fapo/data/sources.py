"""Where rows come from: a file, a folder of a downloaded data set (`folder#split`), or a name on the Hub (`owner/name@subset#split`).

| written | is |
|---|---|
| `data/train.parquet` | a file |
| `data/gsm8k/main#train` | the split's files in a folder, as `hf download --repo-type dataset` leaves it; `#split` where it has several |
| `openai/gsm8k@main#train` | a data set by name, through the package `datasets`, where nothing of this name is on disk |
| `a.jsonl:0.7` | any of these, or a generated set (`puzzles.py`), with a weight: how often it is taken beside others |

What exists on disk is never anything else: `a:1` may be a file, and `openai/gsm8k` a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import PurePath

from soundrl.fapo.data.columns import Columns
from soundrl.fapo.data.rows import SUFFIXES, DataError, Fields, Rows, file_id, read_rows, shown, shown_path

_WEIGHT = re.compile(r"(.+):(\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})", re.DOTALL)
_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w.-]+))?(?:#([\w.-]+))?", re.ASCII)
_SHARD = re.compile(r"(.*?)[-_.]?\d{5}-of-\d{5}(?:-[0-9a-f]{16})?")
_SPLIT = re.compile(r"(?:^|(?<=[-_. ]))(train|test|validation|training|testing|valid|val|dev|eval|evaluation)(?=[-_. ]|$)", re.IGNORECASE)
_SAME = {"training": "train", "testing": "test", "valid": "validation", "val": "validation", "dev": "validation"}
_SAME |= {"eval": "test", "evaluation": "test"}
_NO_ROWS = re.compile(r"dataset_infos?|state|config|metadata|package|tokenizer.*")
"""JSON files that stand beside a data set's own."""
MAX_ENTRIES = 20_000  # of a folder that is looked through: a data set has hundreds
HUB_VERSION = 4  # of `datasets`: earlier ones run a data set's own code


def weighed(source: str) -> tuple[str, Fraction | None]:
    """A source and its weight. ValueError where the weight is 0.

    >>> weighed("a.jsonl:0.7"), weighed("rg:chain_sum?seed=1")
    (('a.jsonl', Fraction(7, 10)), ('rg:chain_sum?seed=1', None))
    """
    if (match := _WEIGHT.fullmatch(source)) is None or on_disk(source):
        return source, None
    if not (weight := Fraction(match[2])):
        raise ValueError(f"data.train {source}: a weight of 0 takes nothing; leave the source out, or use a weight above 0")
    return match[1], weight


def on_disk(source: str) -> bool:
    try:
        return os.path.lexists(source)
    except ValueError:  # a null byte
        return False


def opened(source: str | os.PathLike[str], columns: Columns) -> Iterator[tuple[str, Rows]]:
    """Name (as in ids) and rows of each file of a source, in order. DataError, one line, where there are none."""
    text = os.fspath(source)
    folder, _, split = ("", "", "") if on_disk(text) else text.rpartition("#")
    folder = folder or text
    if on_disk(folder) and os.path.isdir(folder):
        for path in files_of(folder, split):
            yield file_id(path), read_rows(path, columns)
    elif split and on_disk(folder):
        raise DataError(f"{shown_path(text)}: {shown_path(folder)} is a file, which has no splits; leave #{split} out")
    elif not on_disk(text) and PurePath(text).suffix.lower() not in SUFFIXES and (hub := _HUB.fullmatch(text)):
        yield text, _hub_rows(text, hub, columns)
    else:
        yield file_id(text), read_rows(text, columns)


def files_of(folder: str, split: str = "") -> list[str]:
    """The files of a split of a downloaded data set, sorted. DataError where it has several splits or subsets, and none is named.

    A subset is a folder (`main/train-00000-of-00001.parquet`); files in `data/` or in the folder itself belong to the one without a name,
    which comes first. A split is what stands in front of `-00000-of-00001`, else the first word for one in the file's name or, as in
    `main/train/0000.parquet`, its folder.
    """
    name = shown_path(folder)
    found: dict[str, dict[str, list[str]]] = {}
    for path in _walk(folder):
        subset, part = _place(PurePath(os.path.relpath(path, folder)))
        found.setdefault(subset, {}).setdefault(part, []).append(path)
    if not found:
        raise DataError(f"{name}: a folder without {', '.join(SUFFIXES)} files; name one that has some")
    subset = "" if "" in found else next(iter(found))
    if subset and len(found) > 1:
        hint = os.path.join(name, sorted(found)[0]) + (f"#{split}" if split else "")
        raise DataError(f"{name}: has the subsets {_listed(found)}; name one, e.g. {hint}")
    splits = found[subset]
    wanted = split if split in splits else _SAME.get(split, split)
    if not split and len(splits) > 1:
        raise DataError(f"{name}: has the splits {_listed(splits)}; name one: {name}#{next(filter(None, sorted(splits)))}")
    if split and wanted not in splits:
        named = f"the splits {_listed(splits)}" if any(splits) else f"files that name no split; leave #{split} out"
        raise DataError(f"{name}: no split is called {shown(split)}; it has {named}")
    paths = sorted(splits[wanted] if split else next(iter(splits.values())))
    if len(kinds := {PurePath(path).suffix.lower() for path in paths}) > 1:
        raise DataError(f"{name}: the same split in {_listed(kinds)} files; name the files that you mean, one by one")
    return paths


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "(without a name)" for name in sorted(names))


def _walk(folder: str) -> Iterator[str]:
    entries = 0
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (entries := entries + len(folders) + len(files)) > MAX_ENTRIES:
            raise DataError(f"{shown_path(folder)}: more than {MAX_ENTRIES} files; name the folder of one data set")
        for name in files:
            path = PurePath(name)
            odd = path.suffix.lower() == ".json" and _NO_ROWS.fullmatch(path.stem.lower())
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and not odd:
                yield os.path.join(root, name)
            elif path.suffix == ".arrow":
                raise DataError(f"{shown_path(os.path.join(root, name))}: written by save_to_disk; write it by to_parquet instead")


def _place(path: PurePath) -> tuple[str, str]:
    """Subset and split of a file in a data set's folder, "" where they have no name.

    >>> [_place(PurePath(p)) for p in ("data/train-00000-of-00002.parquet", "main/test-00000-of-00001.parquet", "test.jsonl")]
    [('', 'train'), ('main', 'test'), ('', 'test')]
    >>> [_place(PurePath(p)) for p in ("en/train/0000.parquet", "data/aime24.parquet", "all/extended-00001-of-00002.parquet")]
    [('en', 'train'), ('', ''), ('all', 'extended')]
    """
    folders = list(path.parts[:-1])
    if shard := _SHARD.fullmatch(path.stem):
        split = shard[1]
    elif word := _SPLIT.search(path.stem):
        split = word[1].lower()
    else:
        split = folders.pop().lower() if folders and _SPLIT.fullmatch(folders[-1]) else ""
    return "/".join(folders[1:] if folders[:1] == ["data"] else folders), _SAME.get(split, split)


def _hub_rows(text: str, hub: re.Match[str], columns: Columns) -> Rows:
    """By the package `datasets`, which finds its cache or the network. Only the columns that are read are decoded."""
    name, subset, split = hub.groups()
    disk = f"{shown_path(text)}: not on disk"
    try:
        import datasets  # pyright: ignore[reportMissingImports]  # not one of ours, and used where it is installed
    except ImportError:
        cure = f"pip install datasets, or: hf download --repo-type dataset {name} --local-dir data/x, and name data/x"
        raise DataError(f"{disk}; check the path, or, if it is a data set's name: {cure}") from None
    if int(datasets.__version__.partition(".")[0]) < HUB_VERSION:
        raise DataError(f"{text}: datasets {datasets.__version__} runs code of data sets; pip install 'datasets>={HUB_VERSION}'")
    try:
        table = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # whatever Hub, network, cache and the set itself can come up with
        why = shown(f"{type(error).__name__}: {error}", 200)
        raise DataError(f"{disk}, and datasets cannot load it ({why}); check name, @subset, #split and the network") from error
    if isinstance(table, dict):
        if len(table) > 1:
            raise DataError(f"{text}: has the splits {_listed(table)}; name one: {text}#{sorted(table)[0]}")
        table = next(iter(table.values()))
    names: list[str] = table.column_names
    columns.check(text, [_typed(table.features)])
    table = table.select_columns(columns.tops(names))
    for row, fields in enumerate(table, 1):
        yield row, dict(fields)
    if not len(table):
        raise DataError(f"{text}: no rows; it needs at least one")


def _typed(features: object) -> Fields:
    """Names and what is within them, as `Columns.check` wants a row."""
    return {name: _typed(inner) for name, inner in features.items()} if isinstance(features, dict) else {}

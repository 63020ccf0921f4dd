"""The columns of a problem file that are read: ours under their own names, in any case, or renamed by `data.columns`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from soundrl.fapo.data.rows import DataError, Fields, RowError, shown

TEXTS = ("problem", "question", "prompt")
"""Where a row's problem stands."""
ANSWERS = ("answer", "final_answer", "correct answer", "answerkey")
"""Where its reference does, beside `reward_model.ground_truth`; a `solution` that ends in it serves where none of these is there."""
OURS = ("id", *TEXTS, "answer", "solution", "options", "data_source")
"""What `data.columns` can name."""
READ = (
    *("id", *TEXTS, *ANSWERS[:2], "solution", "data_source", "reward_model.ground_truth", "reward_model.style", "extra_info.question"),
    *(
        "verifier",
        "tolerance",
        "context",
        "options",
        "choices",
        "answerkey",
        "correct answer",
        *(f"incorrect answer {number}" for number in (1, 2, 3)),
    ),
)
"""What is read of a problem file; `a.b` is the field b of a."""
SHOWN = 12


@dataclass(frozen=True)
class Columns:
    """Of problem files by `Columns.of`, of others by `read` alone."""

    read: tuple[str, ...]
    """Names that are looked for."""
    renamed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Ours → theirs, the first of several that a row has."""
    whole: bool = False
    """The others are read too, but for those `unread`."""
    unread: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """A file must have one of these."""

    @classmethod
    def of(cls, settings: Sequence[str], difficulty: str = "", whole: bool = False) -> Columns:
        """By `data.columns` and the column that `data.difficulty` names. ValueError where a setting names nothing.

        >>> made = Columns.of(["question=problem", "answer=meta.target,target", "image="])
        >>> made.renamed, made.unread
        ({'question': ('problem',), 'answer': ('meta.target', 'target')}, ('image',))
        """
        renamed: dict[str, tuple[str, ...]] = {}
        unread = tuple(name for name, sign, theirs in (setting.rpartition("=") for setting in settings) if sign and name and not theirs)
        for ours, sign, theirs in (setting.partition("=") for setting in settings if setting[:-1] not in unread):
            names = tuple(theirs.split(","))
            if ours not in OURS or not all(part.strip() for name in names for part in name.split(".")):
                setting = shown(ours + sign + theirs)
                raise ValueError(f"data.columns {setting}: write ours=theirs, e.g. question=problem; ours are {', '.join(OURS)}")
            if ours in renamed:
                raise ValueError(f"data.columns names {ours} twice; write {ours}={renamed[ours][0]},{names[0]} where files differ")
            renamed[ours] = names
        if len(texts := [name for name in TEXTS if name in renamed]) > 1:
            raise ValueError(f"data.columns names {' and '.join(texts)}, which are one; keep one")
        if difficulty:
            renamed["difficulty"] = (difficulty,)
        return cls(READ, renamed, whole, unread, TEXTS)

    @property
    def wanted(self) -> list[str]:
        return [*self.read, *(name for names in self.renamed.values() for name in names)]

    @cached_property
    def _tops(self) -> frozenset[str]:
        return frozenset(name.partition(".")[0] for name in self.read)

    def leaves(self, leaves: Iterable[str]) -> list[str]:
        """Of a Parquet file's leaves, `a.b.list.element`, what is to be decoded: `a.b`, as the file writes it."""
        leaves = [leaf for leaf in leaves if leaf.partition(".")[0] not in self.unread]
        if self.whole:
            return list(dict.fromkeys(leaf.partition(".")[0] for leaf in leaves))
        wanted = [name.lower() for name in self.wanted]
        cut = (leaf[: len(name)] for leaf in leaves for name in wanted if f"{leaf.lower()}.".startswith(f"{name}."))
        return list(dict.fromkeys(cut))

    def tops(self, names: Iterable[str]) -> list[str]:
        """Of a table's columns those of which anything is read."""
        wanted = {name.partition(".")[0].lower() for name in self.wanted} | {name.lower() for name in self.wanted}
        return [name for name in names if name not in self.unread and (self.whole or name.lower() in wanted)]

    def check(self, file: str, rows: Sequence[Fields]) -> None:
        """DataError where no row of `rows`, the first ones, has what was named, or any problem."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        has = f"(its columns: {', '.join(map(shown, names[:SHOWN]))}{', …' if len(names) > SHOWN else ''})" if names else "(no columns)"
        for ours, theirs in self.renamed.items():
            if not any(found(row, name)[0] for row in rows for name in theirs):
                setting = f"data.difficulty {theirs[0]}" if ours == "difficulty" else f"data.columns {ours}={','.join(theirs)}"
                raise DataError(f"{file}: {setting}: no such column {has}; name one of these")
        if names and self.needs and not set(self.needs) & (self.renamed.keys() | {name.lower() for name in names}):
            raise DataError(f"{file}: no column called {', '.join(self.needs)} {has}; name it: --data.columns problem=… answer=…")

    def ours(self, row: Fields) -> Fields:
        """The row under our names; of `a.b` the whole of a. RowError where it lacks what it needs, and where two columns differ in the case
        of a name alone.

        >>> Columns.of(["problem=task.text"]).ours({"task": {"text": "1+1?"}, "Answer": 2, "prompt": "unread"})
        {'answer': 2, 'problem': '1+1?'}
        """
        fields: Fields = {}
        hidden = TEXTS if any(name in self.renamed for name in TEXTS) else ()
        hidden += ANSWERS if "answer" in self.renamed else ()
        tops = self._tops
        for name, value in row.items():
            known = name if name in tops else name.lower()
            if known not in tops or known in hidden or name in self.unread or (name != known and known in row):
                continue
            if known in fields and name != known:
                raise RowError(f"two columns are called so but for their case; say which by --data.columns {known}=…", known)
            fields[known] = value
        for ours, theirs in self.renamed.items():
            fields.pop(ours, None)
            here = [value for there, value in (found(row, name) for name in theirs) if there]
            if here:
                fields[ours] = here[0]
        if self.needs and all(fields.get(name) is None for name in self.needs):
            names = ", ".join(map(shown, list(row)[:SHOWN])) or "none"
            raise RowError(f"missing (fields: {names}); write problem and answer, or prompt and reward_model", self.needs[0])
        return fields


def found(row: Fields, name: str) -> tuple[bool, object]:
    """Whether a row has the column, and what it holds: `a.b` may be a column of this name, or the field b of a.

    >>> found({"a": {"b": 2}}, "a.b"), found({"a": None}, "a.b")
    ((True, 2), (False, None))
    """
    if name in row:
        return True, row[name]
    first, _, rest = name.partition(".")
    inner = row.get(first)
    return found(inner, rest) if rest and isinstance(inner, dict) else (False, None)

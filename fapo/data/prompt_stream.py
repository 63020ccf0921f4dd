"""The order in which prompts are trained: seeded, reshuffled each epoch, the same on every rank, resumable from one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import count
from typing import Any, Protocol

from soundrl.fapo.data.mixture import Mixture
from soundrl.fapo.records import Prompt


class PromptSource(Protocol):
    """Problems without an end, made from their number."""

    def prompt(self, index: int) -> Prompt:
        """Prompt `index` ≥ 0: the same one on every call and every rank."""
        ...


class PromptStream:
    """Takes prompts of a list or an endless source in an order that follows from `seed` and the prompts' ids alone.

    Every rank takes the same. A list is shuffled anew each epoch and every prompt comes once per epoch, also where a batch crosses its end;
    such a batch can hold a prompt twice (see `distinct`). An endless source comes in order of its index. Of a `Mixture` with weights each
    source has epochs of its own.

    Example: of four prompts a, b, c, d in the order c, a, d, b, `take(3)` gives `[c, a, d]`.

    `difficulty` as the setting `data.difficulty`: where it names a column, the first epoch goes from easy to hard by `Prompt.difficulty`. A
    prompt that has trained nothing in so many visits in a row (0 = whatever it does) is passed over in three of four epochs, by a hash of
    seed, epoch and id, until it trains something again.

    `cursor` is the number of prompts taken or passed over so far. ValueError where there are no prompts, or two have the same id, and where
    `difficulty` asks for what they do not have: epochs, or numbers.
    """

    def __init__(self, prompts: Sequence[Prompt] | PromptSource, seed: int, difficulty: tuple[str, int] = ("", 0)) -> None:
        self.prompts, self.seed, self.cursor = prompts, seed, 0
        self.column, self.visits = difficulty
        self.silent: dict[str, int] = {}
        """By id the visits in a row without a signal, of those whose last one was such"""
        self.passed = 0
        """Passed over since `learn` was called last"""
        if any(difficulty) and not isinstance(prompts, Sequence):
            raise ValueError(
                f"data.difficulty is {self.column or 'empty'} {self.visits}, but data.train has no end: no problem comes twice, none is "
                'the easiest; set --data.difficulty "" 0'
            )
        # An endless source is known by its beginning.
        first = prompts if isinstance(prompts, Sequence) else [prompts.prompt(index) for index in range(16)]
        if not first:
            raise ValueError("no prompts: the data set is empty")
        self._ids = [prompt.id for prompt in first]
        if len(set(self._ids)) < len(self._ids):
            twice = next(id for index, id in enumerate(self._ids) if id in self._ids[:index])
            raise ValueError(f"two prompts have the id {twice!r}: seeds are derived from ids, so give files different names")
        if self.column and (bare := [prompt.id for prompt in first if prompt.difficulty is None]):
            raise ValueError(f"data.difficulty {self.column}: {len(bare)} of {len(first)} problems have no number there (first: {bare[0]})")
        self._hard = [prompt.difficulty or 0.0 for prompt in first] if self.column else [0.0] * len(first)
        self._known = frozenset(self._ids)
        self._digest = _digest(first)
        self._parts = list[PromptStream]()
        if isinstance(prompts, Mixture) and prompts.weights is not None:
            self._parts = [PromptStream(part, seed, (self.column, 0)) for part in prompts.parts]
            self._digest += "".join(sorted(f" {part._digest}:{share}" for part, share in zip(self._parts, prompts.shares, strict=True)))
        self._epoch, self._order = -1, list[int]()

    def take(self, number: int) -> list[Prompt]:
        """The next `number` prompts; ValueError below one."""
        if number < 1:
            raise ValueError(f"{number} prompts: take at least one")
        out = list[Prompt]()
        while len(out) < number:
            prompt, epoch = self._at(self.cursor)
            self.cursor += 1
            if self._seldom(prompt, epoch):
                self.passed += 1
            else:
                out.append(prompt)
        return out

    def _seldom(self, prompt: Prompt, epoch: int) -> bool:
        """Whether it is passed over in this epoch: by another hash than the order's, which would leave none but the last of an epoch."""
        if not self.visits or self.silent.get(prompt.id, 0) < self.visits:
            return False
        return hashed(f"{self.seed}\0{epoch}\0{prompt.id}\0seldom")[0] % 4 > 0

    def learn(self, signals: Mapping[str, bool]) -> dict[str, float]:
        """What a step has shown: whether each of its prompts, by the id that `distinct` gave it, has trained something. Returns what is to
        be said of it."""
        for id_ in sorted(signals):
            own = id_ if id_ in self._known else id_.rpartition("#")[0]
            if signals[id_]:
                self.silent.pop(own, None)
            else:
                self.silent[own] = self.silent.get(own, 0) + 1
        passed, self.passed = self.passed, 0
        return {"data/passed_over": float(passed), "data/seldom": float(sum(n >= self.visits for n in self.silent.values()))}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: the cursor, the seed and data it belongs to, and what has trained nothing. The same on every rank, and for every
        number of them."""
        state = {"cursor": self.cursor, "seed": self.seed, "digest": self._digest}
        return state | {"silent": dict(sorted(self.silent.items()))} if self.visits else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on at the cursor of `state`. Raises `ValueError` where it was made with other data or another seed."""
        if set(state) != set(self.state_dict()):
            raise ValueError(f"state of a prompt stream: expected {', '.join(self.state_dict())}, found {sorted(map(str, state))}")
        if state["digest"] != self._digest:
            raise ValueError(
                f"the data differ from those of the checkpoint (digest {self._digest}, was {state['digest']!r}): name the same data"
            )
        if state["seed"] != self.seed:
            raise ValueError(f"the order was made with seed {state['seed']!r}, now {self.seed}: set the same seed")
        cursor = state["cursor"]
        if not isinstance(cursor, int) or isinstance(cursor, bool) or cursor < 0:
            raise ValueError(f"cursor {cursor!r}: expected a count of prompts")
        self.cursor, self.silent = cursor, dict(state.get("silent", {}))

    def _at(self, position: int) -> tuple[Prompt, int]:
        """The prompt of a place, and in which epoch that is."""
        if not isinstance(self.prompts, Sequence):
            return self.prompts.prompt(position), 0
        if self._parts and isinstance(self.prompts, Mixture):
            part, position = self.prompts.turn(position)
            return self._parts[part]._at(position)
        epoch, place = divmod(position, len(self._ids))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self._ids, self.seed, epoch)
            if epoch == 0:
                self._order.sort(key=lambda index: self._hard[index])  # stable: those that are alike stay as they were
        return self.prompts[self._order[place]], epoch


def distinct(prompts: Sequence[Prompt], others: Sequence[Prompt] = ()) -> list[Prompt]:
    """Ids made unique where a batch, of which `others` are a part, reaches into the next epoch and holds a problem twice: `a, b, a` →
    `a, b, a#2`.

    Seeds are derived from ids, so the second group is sampled anew.
    """
    seen, out = {prompt.id for prompt in others}, list[Prompt]()
    for prompt in prompts:
        names = (prompt.id if number == 1 else f"{prompt.id}#{number}" for number in count(1))
        seen.add(name := next(name for name in names if name not in seen))
        out.append(prompt if name == prompt.id else replace(prompt, id=name))
    return out


def shuffled(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """The indices of `ids` in the order of epoch `epoch`: sorted by BLAKE2b of (seed, epoch, id).

    A sort by hash and not a shuffle of `random` or numpy: their algorithms may change between versions, and their result depends on the
    order of the file, while a resumed run needs the same order from nothing but ids.

    >>> shuffled(["a", "b", "c", "d"], seed=0, epoch=0), shuffled(["a", "b", "c", "d"], seed=0, epoch=1)
    ([3, 2, 1, 0], [0, 3, 1, 2])
    """

    return sorted(range(len(ids)), key=lambda index: hashed(f"{seed}\0{epoch}\0{ids[index]}"))


def hashed(text: str) -> bytes:
    """16 bytes of BLAKE2b; a file name that is no UTF-8 reaches an id as surrogates."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _digest(prompts: Sequence[Prompt]) -> str:
    """16 hex digits of ids, texts, answers and difficulties, in any order; ids alone would not show that a file was edited in place."""
    total = blake2b(digest_size=8)
    for prompt in sorted(prompts, key=lambda prompt: prompt.id):
        hard = () if prompt.difficulty is None else (repr(prompt.difficulty),)
        for part in (prompt.id, prompt.text, prompt.answer, *hard):
            data = part.encode("utf-8", "surrogatepass")
            total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()

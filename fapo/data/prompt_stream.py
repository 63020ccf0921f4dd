"""The order in which prompts are trained: seeded, reshuffled each epoch, the same on every rank, resumable from one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import count
from typing import Protocol

from soundrl.fapo.records import Prompt


class PromptSource(Protocol):
    """Problems without an end, made from their number."""

    def prompt(self, index: int) -> Prompt:
        """Prompt `index` ≥ 0: the same one on every call and every rank."""
        ...


class PromptStream:
    """Takes prompts of a list or an endless source in an order that follows from `seed` and the prompts' ids alone.

    Every rank takes the same. A list is shuffled anew each epoch and every prompt comes once per epoch, also where a batch crosses its end;
    such a batch can hold a prompt twice (see `distinct`). An endless source comes in order of its index.

    Example: of four prompts a, b, c, d in the order c, a, d, b, `take(3)` gives `[c, a, d]`.

    `cursor` is the number of prompts taken so far. ValueError where there are no prompts, or two have the same id.
    """

    def __init__(self, prompts: Sequence[Prompt] | PromptSource, seed: int) -> None:
        self.prompts, self.seed, self.cursor = prompts, seed, 0
        # An endless source is known by its beginning.
        first = prompts if isinstance(prompts, Sequence) else [prompts.prompt(index) for index in range(16)]
        if not first:
            raise ValueError("no prompts: the data set is empty")
        self._ids = [prompt.id for prompt in first]
        if len(set(self._ids)) < len(self._ids):
            twice = next(id for index, id in enumerate(self._ids) if id in self._ids[:index])
            raise ValueError(f"two prompts have the id {twice!r}: seeds are derived from ids, so give files different names")
        self._digest = _digest(first)
        self._epoch, self._order = -1, list[int]()

    def take(self, number: int) -> list[Prompt]:
        """The next `number` prompts; ValueError below one."""
        if number < 1:
            raise ValueError(f"{number} prompts: take at least one")
        begin, self.cursor = self.cursor, self.cursor + number
        return [self._at(position) for position in range(begin, self.cursor)]

    def state_dict(self) -> dict[str, int | str]:
        """Plain JSON: the cursor, and the seed and data it belongs to. The same on every rank, and for every number of them."""
        return {"cursor": self.cursor, "seed": self.seed, "digest": self._digest}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Goes on at the cursor of `state`. Raises `ValueError` where it was made with other data or another seed."""
        if set(state) != {"cursor", "seed", "digest"}:
            raise ValueError(f"state of a prompt stream: expected cursor, seed and digest, found {sorted(map(str, state))}")
        if state["digest"] != self._digest:
            raise ValueError(
                f"the data differ from those of the checkpoint (digest {self._digest}, was {state['digest']!r}): name the same data"
            )
        if state["seed"] != self.seed:
            raise ValueError(f"the order was made with seed {state['seed']!r}, now {self.seed}: set the same seed")
        cursor = state["cursor"]
        if not isinstance(cursor, int) or isinstance(cursor, bool) or cursor < 0:
            raise ValueError(f"cursor {cursor!r}: expected a count of prompts")
        self.cursor = cursor

    def _at(self, position: int) -> Prompt:
        if not isinstance(self.prompts, Sequence):
            return self.prompts.prompt(position)
        epoch, place = divmod(position, len(self._ids))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self._ids, self.seed, epoch)
        return self.prompts[self._order[place]]


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

    def key(index: int) -> bytes:
        # surrogatepass: a file name that is no UTF-8 reaches the id as surrogates.
        return blake2b(f"{seed}\0{epoch}\0{ids[index]}".encode("utf-8", "surrogatepass"), digest_size=16).digest()

    return sorted(range(len(ids)), key=key)


def _digest(prompts: Sequence[Prompt]) -> str:
    """16 hex digits of ids, texts and answers, in any order; ids alone would not show that a file was edited in place."""
    total = blake2b(digest_size=8)
    for prompt in sorted(prompts, key=lambda prompt: prompt.id):
        for part in (prompt.id, prompt.text, prompt.answer):
            data = part.encode("utf-8", "surrogatepass")
            total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()

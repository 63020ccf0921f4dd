"""The order in which prompts are trained: seeded, reshuffled each epoch, split over ranks, resumable from one number."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, cast

from soundrl.fapo.records import Prompt


class PromptSource(Protocol):
    """Where prompts come from when they are not a list: finite (`size` of them) or endless (`size` is None, prompt i made from i)."""

    @property
    def size(self) -> int | None: ...

    def prompt(self, index: int) -> Prompt:
        """Prompt `index` ≥ 0 (below `size` where that is set): the same one on every call and every rank."""
        ...


class PromptStream:
    """Takes prompts of a list or a source in an order that follows from `seed` and the prompts' ids alone.

    The stream is one sequence for all ranks; a rank takes its block of it, so that the blocks in rank order are the same list whatever the
    world size. A finite source is shuffled anew each epoch and every prompt comes once per epoch, also where a batch crosses its end; such
    a batch can hold a prompt twice, from the end of one epoch and the beginning of the next. An endless source comes in order of its index.

    Example: of four prompts a, b, c, d in the order c, a, d, b, `take(2)` on two ranks gives `[c]` and `[a]`, then `[d]` and `[b]`.

    Raises `ValueError` where there are no prompts, two have the same id, or rank and world do not fit.
    """

    def __init__(self, prompts: Sequence[Prompt] | PromptSource, seed: int, rank: int = 0, world: int = 1) -> None:
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank={rank} with world={world}: a rank is one of 0 … world − 1")
        self._seed, self._rank, self._world = seed, rank, world
        self._cursor = 0
        self._source: PromptSource = cast(PromptSource, prompts) if hasattr(prompts, "prompt") else _Listed(cast(Sequence[Prompt], prompts))
        self._size = self._source.size
        if self._size is not None and self._size < 1:
            raise ValueError("no prompts: the data set is empty")
        # An endless source is known by its beginning.
        first = [self._source.prompt(index) for index in range(16 if self._size is None else self._size)]
        self._ids = [prompt.id for prompt in first]
        if len(set(self._ids)) < len(self._ids):
            twice = next(id for index, id in enumerate(self._ids) if id in self._ids[:index])
            raise ValueError(f"two prompts have the id {twice!r}: seeds are derived from ids, so give files different names")
        self._digest = _digest(first, self._size)
        self._epoch, self._order = -1, list[int]()

    @property
    def cursor(self) -> int:
        """Number of prompts taken so far by all ranks together."""
        return self._cursor

    @property
    def epoch(self) -> int:
        """Number of whole epochs taken; 0 for ever where the source is endless."""
        return 0 if self._size is None else self._cursor // self._size

    def take(self, n_global: int) -> list[Prompt]:
        """This rank's `n_global / world` of the next `n_global` prompts; every rank must take the same number.

        Raises `ValueError` where `n_global` is not a positive multiple of the world size.
        """
        if n_global < 1 or n_global % self._world:
            raise ValueError(f"{n_global} prompts for {self._world} ranks: use a positive multiple of the number of ranks")
        share = n_global // self._world
        begin = self._cursor + self._rank * share
        self._cursor += n_global
        return [self._source.prompt(self._index(position)) for position in range(begin, begin + share)]

    def state_dict(self) -> dict[str, int | str]:
        """Plain JSON: the cursor, and the seed and data it belongs to. The same on every rank and for every world size."""
        return {"cursor": self._cursor, "seed": self._seed, "digest": self._digest}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Goes on at the cursor of `state`. Raises `ValueError` where it was made with other data or another seed."""
        if set(state) != {"cursor", "seed", "digest"}:
            raise ValueError(f"state of a prompt stream: expected cursor, seed and digest, found {sorted(map(str, state))}")
        if state["digest"] != self._digest:
            raise ValueError(
                f"the data differ from those of the checkpoint (digest {self._digest}, was {state['digest']!r}): name the same data"
            )
        if state["seed"] != self._seed:
            raise ValueError(f"the order was made with seed {state['seed']!r}, now {self._seed}: set the same seed")
        cursor = state["cursor"]
        if not isinstance(cursor, int) or isinstance(cursor, bool) or cursor < 0:
            raise ValueError(f"cursor {cursor!r}: expected a count of prompts")
        self._cursor = cursor

    def _index(self, position: int) -> int:
        """The source's index of the prompt at `position` of the stream."""
        if self._size is None:
            return position
        epoch, place = divmod(position, self._size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self._ids, self._seed, epoch)
        return self._order[place]


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


class _Listed:
    """A list as a `PromptSource`."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = tuple(prompts)

    @property
    def size(self) -> int:
        return len(self._prompts)

    def prompt(self, index: int) -> Prompt:
        return self._prompts[index]


def _digest(prompts: Sequence[Prompt], size: int | None) -> str:
    """16 hex digits of ids, texts and answers, in any order; ids alone would not show that a file was edited in place."""
    total = blake2b(str(size).encode(), digest_size=8)
    for prompt in sorted(prompts, key=lambda prompt: prompt.id):
        for part in (prompt.id, prompt.text, prompt.answer):
            data = part.encode("utf-8", "surrogatepass")
            total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()

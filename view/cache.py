"""What has been read and may be asked for again, bounded in bytes; the longest unused goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Cache:
    """`cache(key, stamp, make)`: what `make` gave for this key while the stamp was the same; it has a `size` in bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self.held: OrderedDict[Hashable, tuple[Hashable, Any, int]] = OrderedDict()
        self.lock = threading.Lock()

    def __call__(self, key: Hashable, stamp: Hashable, make: Callable[[], Any]) -> Any:
        """Two that ask at once may both make it: nobody waits for the disk of another."""
        with self.lock:
            found = self.held.get(key)
            if found is not None and found[0] == stamp:
                self.held.move_to_end(key)
                return found[1]
        value = make()
        size = int(value.size)
        with self.lock:
            if (old := self.held.pop(key, None)) is not None:
                self.bytes -= old[2]
            if size <= self.most:
                self.held[key] = (stamp, value, size)
                self.bytes += size
            while self.bytes > self.most:
                self.bytes -= self.held.popitem(last=False)[1][2]
        return value

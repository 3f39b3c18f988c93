"""Who may compute, and what is kept: one computation at a time, the newest request of a page, the last few results."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
Check = Callable[[], None]
"""To be called between two parts of a computation; raises :class:`SupersededError` if nobody waits for it any more."""

PAGES = 64
"""Pages whose newest request is remembered."""


class SupersededError(Exception):
    """The page has asked for something else meanwhile, or is gone; nobody waits for this answer."""


class Turns:
    """One computation at a time. Of the requests of a page only the newest is computed."""

    def __init__(self) -> None:
        self._computing = threading.Lock()
        self._guard = threading.Lock()
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._closed = False

    @contextmanager
    def take(self, page: str, number: int) -> Iterator[Check]:
        """Wait for the turn of a request, and hold it.

        Args:
            page: Identifies the page.
            number: Of the request; a page's later ones have larger numbers.

        Raises:
            SupersededError: If the page has sent a later one before the turn came.
        """
        with self._guard:
            self._newest[page] = max(number, self._newest.get(page, number))
            self._newest.move_to_end(page)
            while len(self._newest) > PAGES:
                self._newest.popitem(last=False)

        def check() -> None:
            with self._guard:
                if self._closed or self._newest.get(page, number) > number:
                    raise SupersededError

        with self._computing:
            check()
            yield check

    def close(self) -> None:
        """End what is computed at its next check, let nothing begin, and wait for it."""
        with self._guard:
            self._closed = True
        with self._computing:
            pass


class Shelf(Generic[T]):
    """The last few things by name.

    Args:
        most: Number of things that are kept.
        weight: Sum of their weights, in bytes; the last two are kept whatever they weigh.
    """

    def __init__(self, most: int, weight: int) -> None:
        self.most, self.weight = most, weight
        self._guard = threading.Lock()
        self._kept: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def put(self, name: str, thing: T, weight: int) -> T:
        """Keep a thing of ``weight`` bytes, and let the oldest go for it."""
        with self._guard:
            self._kept[name] = thing, weight
            self._kept.move_to_end(name)
            while len(self._kept) > self.most or (len(self._kept) > 2 and self._total() > self.weight):
                self._kept.popitem(last=False)
        return thing

    def get(self, name: str) -> T | None:
        """A thing that is still kept, which makes it the newest; None for another name."""
        with self._guard:
            if name not in self._kept:
                return None
            self._kept.move_to_end(name)
            return self._kept[name][0]

    def __len__(self) -> int:
        return len(self._kept)

    def _total(self) -> int:
        return sum(weight for _, weight in self._kept.values())

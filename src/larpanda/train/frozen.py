"""What a frozen model says of events, made when first asked for and kept, up to 4 GiB for a process and a sequence."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, overload

import numpy as np

from larpanda.event import Event

KEPT_BYTES = 4 << 30  # of up-cast features about 1,500 events of `nano`, of its fragments all that one has


class Kept(Protocol):
    """Of one event, or of several end to end."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""

    def __len__(self) -> int:
        """About how much work it is."""

    @classmethod
    def pack(cls: type["K"], parts: Sequence["K"]) -> "K":
        """Lay events end to end."""


K = TypeVar("K", bound=Kept)


class FrozenEvents(Sequence[K]):
    """Events as a frozen model sees them: nothing about them is random, so that each is made once."""

    def __init__(self, make: Callable[[Event], K], events: Sequence[Event]) -> None:
        self._make, self._events = make, events
        self._kept: dict[int, K] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> K: ...
    @overload
    def __getitem__(self, index: slice) -> "FrozenEvents[K]": ...
    def __getitem__(self, index: int | slice) -> "K | FrozenEvents[K]":
        if isinstance(index, slice):
            return FrozenEvents(self._make, self._events[index])
        index = range(len(self))[index]
        if index not in self._kept:
            made = self._make(self._events[index])
            if made.nbytes > self._room:  # made again each time: the result is the same
                return made
            self._room -= made.nbytes
            self._kept[index] = made
        return self._kept[index]


class FrozenBatches:
    """Lays events end to end."""

    def size(self, event: Kept) -> int:
        """Its own."""
        return len(event)

    def __call__(self, events: Sequence[K], rngs: Sequence[np.random.Generator], progress: float) -> K:
        """Make the input of a step."""
        return type(events[0]).pack(events)

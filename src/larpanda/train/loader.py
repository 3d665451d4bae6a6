"""The input of each step: the events of its batch, this process's share of them, made here or ahead in other processes.

What a step gets depends on the stream and the number of processes of the run, not on who makes it.
"""

import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from torch.utils.data import DataLoader, Dataset

from larpanda.data.stream import Stream, shares
from larpanda.train.tasks import B, MakeBatch

_END = object()


@dataclass(frozen=True)
class Share(Generic[B]):
    """What one of the processes of a run takes of every step's batch. Can be sent to processes."""

    events: Sequence[Any]
    stream: Stream
    make: MakeBatch[Any, B]
    steps: int
    rank: int = 0
    world: int = 1

    def __getitem__(self, step: int) -> B:
        """Make the input of a step.

        Every process reads the whole batch, because the shares depend on all sizes; then each event has the random
        numbers of its place in the whole batch, and 1, 2 or 8 processes see the same views.
        """
        batch = [self.events[int(i)] for i in self.stream.ordinals(step)]
        places = shares([self.make.size(event) for event in batch], self.world)[self.rank]
        rngs = [self.stream.generator(step, place) for place in places]
        return self.make([batch[place] for place in places], rngs, step / self.steps)


def inputs(share: Share[B], begin: int, workers: int) -> Generator[B, None, None]:
    """The input of the steps from ``begin``, in order.

    Args:
        share: of this process.
        begin: first step.
        workers: processes that make input ahead, two steps each; 0: made here when it is asked for. A script that
            asks for more needs ``if __name__ == "__main__":``.

    Raises:
        ValueError: as reading an event does.
        OSError: likewise; a worker died (ChildProcessError).
    """
    if workers == 0 or begin >= share.steps:
        for step in range(begin, share.steps):
            yield share[step]
        return
    # Not a fork: it would copy the locks of other libraries' threads, and the lock of the run folder. Not a forkserver:
    # it lives as long as its children, which look whether their parent lives; of a killed run all would stay for ever.
    loader: DataLoader[Any] = DataLoader(
        _OrError(share),
        batch_size=None,
        sampler=range(begin, share.steps),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals,
        multiprocessing_context="spawn",
    )
    made = iter(loader)
    try:
        while (item := _next(made, workers)) is not _END:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        del made  # ends the processes; an error's trace must not keep them, since they do not end when asked to


def _next(made: Iterator[Any], workers: int) -> Any:
    """The next item, an error to raise, or _END."""
    try:
        return next(made)
    except StopIteration:
        return _END
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        return ChildProcessError(
            f"a process that makes batches died ({str(error).splitlines()[0]}); was there memory for {workers} of "
            "them (workers)? The same command goes on from the last checkpoint"
        )


class _OrError(Dataset[Any]):
    """Gives the caller's mistakes as items: raised in a worker they would arrive wrapped in its trace."""

    def __init__(self, share: Share[Any]) -> None:
        self.share = share

    def __getitem__(self, step: int) -> Any:
        try:
            return self.share[step]
        except (ValueError, OSError) as error:
            return error


def _as_it_is(item: Any) -> Any:
    return item


def _leave_signals(_: int) -> None:
    """A terminal and torchrun signal all processes of a run; its main ones decide, and still need their workers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

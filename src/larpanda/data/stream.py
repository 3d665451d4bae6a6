"""Which event at which step: a pure function of (seed, step), so that the state of a run's data is one integer."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

_ORDER, _VIEW, _MODEL = 0, 1, 2  # what a random generator is for: no two uses share a stream


@dataclass(frozen=True)
class Stream:
    """Passes over the events in ever new order; every event once in each pass."""

    n_events: int
    batch_events: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_events < 1 or self.batch_events < 1:
            raise ValueError(f"{self.n_events} events in batches of {self.batch_events}; both must be at least 1")

    def ordinals(self, step: int) -> npt.NDArray[np.int64]:
        """[batch_events] int64: the events of a step."""
        place = np.arange(step * self.batch_events, (step + 1) * self.batch_events)
        number, within = np.divmod(place, self.n_events)
        result = np.empty(self.batch_events, np.int64)
        for n in np.unique(number):
            order = np.random.default_rng([self.seed, _ORDER, int(n)]).permutation(self.n_events)
            result[number == n] = order[within[number == n]]
        return result

    def generator(self, step: int, place: int) -> np.random.Generator:
        """The random numbers for the views of the event at one place of a step's batch."""
        return np.random.default_rng([self.seed, _VIEW, step, place])

    def torch_generator(self, step: int) -> torch.Generator:
        """The random numbers that the model itself draws in a step."""
        state = np.random.SeedSequence([self.seed, _MODEL, step]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> 1))

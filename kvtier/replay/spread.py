"""Which of several GPUs a request of a trace goes to.

Each GPU goes through the trace by itself and takes what is its own. So what one is given never
depends on how fast another is, no request is held for a GPU that is behind, and none waits for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtier.errors import SettingsError
from kvtier.hashing import fmix64_int, seed_word
from kvtier.settings import Settings, Spread, gpus_of
from kvtier.trace import PageRequest, PageTrace, Request, RequestTrace


@dataclass(frozen=True, slots=True)
class Share:
    """The requests of one GPU.

    Attributes:
        gpu: its number.
        gpus: how many there are.
        spread: how requests are spread over them.
        seed_word: XORed into a session before it is hashed.
    """

    gpu: int
    gpus: int
    spread: Spread
    seed_word: int

    def has(self, number: int, request: Request | PageRequest) -> bool:
        """Whether the request at this position in the trace is the GPU's."""
        return self.gpu_of(number, request) == self.gpu

    def gpu_of(self, number: int, request: Request | PageRequest) -> int:
        """The number of the GPU that the request at this position in the trace goes to."""
        if self.gpus == 1:
            return self.gpu
        if self.spread == "session" and isinstance(request, Request):
            number = fmix64_int(request.session ^ self.seed_word)
        return number % self.gpus


def shares_of(trace: RequestTrace | PageTrace, settings: Settings) -> list[Share]:
    """The share of each GPU; of a single one, everything.

    Raises:
        SettingsError: requests are to be spread by a session that they do not have.
    """
    gpus = len(gpus_of(settings.topology))
    spread = settings.replay.spread
    if spread is None:
        spread = "session" if isinstance(trace, RequestTrace) else "round_robin"
    elif gpus > 1 and spread == "session" and isinstance(trace, PageTrace):
        raise SettingsError(
            f"replay.spread is session: {trace.path} is a page trace, whose requests have none; "
            "set replay.spread = 'round_robin', or leave it out"
        )
    word = seed_word(settings.seed)
    return [Share(gpu, gpus, spread, word) for gpu in range(gpus)]

"""A request while it is being served."""

from __future__ import annotations

from dataclasses import dataclass

from kvtier.trace import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """A request, and when each of its parts was done.

    Attributes:
        number: its place in the trace.
        request: what was recorded.
        arrival_ns: when it came.
        queued_ns: when it came to the queue of the node that it is at.
        ready_ns: when what that node could load was there.
        first_ns: when its first token was out.
        loaded_tokens: tokens of the prompt that were loaded and not computed.
        waited_ns: how long it waited for loads, and for writes before another node could load.
        computed_ns: how long it had its part in the steps of nodes.
    """

    number: int
    request: Request
    arrival_ns: int
    queued_ns: int = 0
    ready_ns: int = 0
    first_ns: int = 0
    loaded_tokens: int = 0
    waited_ns: int = 0
    computed_ns: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt; one at least, for the first answer is computed from one."""
        return max(1, self.request.in_tokens)

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer; may be 0."""
        return self.request.out_tokens

    @property
    def decode_steps(self) -> int:
        """Steps after the one that computes the end of the prompt, and the first token."""
        return max(0, self.output_tokens - 1)

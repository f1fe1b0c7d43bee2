"""Nearly right frames; `make soak` takes more of them, with bench/wire_fuzz.py."""

from __future__ import annotations

import random
import tracemalloc

from kvtier.testing.fuzz import INPUT_BYTES_MAX, LIMITS, mutated, parse, valid_frames

INPUTS = 20_000


def test_a_frame_of_every_kind_is_taken() -> None:
    frames = valid_frames()
    assert parse(b"".join(frames)) == len(frames)


def test_damaged_frames_are_taken_or_refused() -> None:
    rng, frames = random.Random(1), valid_frames()
    taken = sum(parse(mutated(rng, frames)) for _ in range(INPUTS))
    # Enough pass and enough break that both ways were gone.
    assert INPUTS / 10 < taken < 2 * INPUTS


def test_what_a_frame_announces_costs_no_more_than_the_limits() -> None:
    rng, frames = random.Random(2), valid_frames()
    inputs = [mutated(rng, frames) for _ in range(2000)]
    parse(inputs[0])
    tracemalloc.start()
    try:
        for data in inputs:
            parse(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    most_bytes = LIMITS.body_bytes_max + LIMITS.payload_bytes_max + 64 * INPUT_BYTES_MAX
    assert peak_bytes < 2 * most_bytes

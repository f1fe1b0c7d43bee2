"""A model server in virtual time: its steps by hand, its bounds and its laws on any requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from kvtier.clock import VirtualClock
from kvtier.emulator import Timeline, VirtualLoop
from kvtier.errors import BackendError
from kvtier.replay.meter import RequestMeter
from kvtier.serving import (
    ROLES,
    Arrivals,
    Batch,
    Batcher,
    Bounds,
    Chunk,
    Job,
    Roofline,
    Sequence,
    Service,
    ServingMeter,
    kv_capacity_bytes,
    ttft_saved,
)
from kvtier.settings import ComputeSettings
from kvtier.trace import NO_PARENT, Request, geometry

US = 1000
"""ns"""

LLAMA = geometry("llama-3-8b")
PLAIN = replace(
    LLAMA,
    layers=1,
    bytes_per_layer_token=1,
    parameters=1000,
    active_parameters=1000,
    prompt_pair_flops=0,
    decode_pair_flops=0,
)
"""A model whose every token takes 1 us on ``SLOW``."""
SLOW = ComputeSettings(flops=4e9, bytes_per_s=1e18, efficiency=0.5)


def request(
    t_ns: int, prompt: int, answer: int, parent: int = NO_PARENT, blocks: int = 1
) -> Request:
    return Request(t_ns, 0, parent, 0, "", prompt, answer, np.arange(blocks, dtype=np.uint64))


@dataclass
class Shelf:
    """Blocks that take their time: loads by number of the request, (tokens, ns)."""

    timeline: Timeline
    loads: Mapping[int, tuple[int, int]]
    write_ns: int = 0
    fails: bool = False

    async def load(self, sequence: Sequence) -> int:
        tokens, took_ns = self.loads.get(sequence.number, (0, 0))
        await self._pass(took_ns)
        return tokens

    async def write(self, sequence: Sequence) -> None:
        await self._pass(self.write_ns)
        if self.fails:
            raise BackendError("the shelf is full")

    async def _pass(self, ns: int) -> None:
        if ns:
            future = asyncio.get_running_loop().create_future()
            self.timeline.at(self.timeline.now_ns + ns, lambda: future.set_result(None))
            await future


class Watched(Service):
    """Notes when each request had its first token, and its last."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first_us: dict[int, float] = {}
        self.last_us: dict[int, float] = {}
        self.order: list[int] = []

    def admitted(self, sequence: Sequence, role: Any) -> None:
        super().admitted(sequence, role)
        if role.prefills:
            self.order.append(sequence.number)

    def prompt_computed(self, sequence: Sequence) -> None:
        super().prompt_computed(sequence)
        self.first_us[sequence.number] = self._timeline.now_ns / US

    def ended(self, sequence: Sequence, role: Any) -> None:
        super().ended(sequence, role)
        self.last_us[sequence.number] = self._timeline.now_ns / US


@dataclass
class Served:
    service: Watched
    requests: dict[str, Any]
    now_ns: int

    def node(self, number: int = 0) -> dict[str, Any]:
        engine = self.service.engines[number]
        return engine.meter.to_dict(engine.role.name, self.now_ns / 1e9, 1)

    @property
    def totals(self) -> dict[str, Any]:
        return self.service.meter.to_dict(self.now_ns / 1e9)


def serve(
    requests: list[Request],
    *,
    slots: int = 8,
    kv_tokens: int = 10**9,
    tokens: int = 64,
    loads: Mapping[int, tuple[int, int]] | None = None,
    write_ns: int = 0,
    roles: str = "one",
    transfers: Mapping[int, tuple[int, int]] | None = None,
    roofline: Roofline | None = None,
    fails: bool = False,
    after_round: Callable[[], None] = lambda: None,
) -> Served:
    clock = VirtualClock()
    timeline = Timeline(clock)
    meter = RequestMeter(clock)
    shelves = [Shelf(timeline, loads or {}, write_ns, fails), Shelf(timeline, transfers or {})]
    service = Watched(
        timeline,
        roofline or Roofline(PLAIN, SLOW),
        ROLES[roles],
        tuple(shelves[: len(ROLES[roles])]),
        Bounds(slots, kv_tokens, tokens),
        arrivals=Arrivals(iter(enumerate(requests)), 0, 1.0),
        requests=meter,
        meter=ServingMeter(),
        after_round=after_round,
    )
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(timeline)) as runner:
        runner.run(service.run())
    return Served(service, meter.to_dict(clock.now_ns() / 1e9), clock.now_ns())


# -- the roofline -----------------------------------------------------------------------------


def test_a_prompt_takes_the_time_of_its_operations() -> None:
    roofline = Roofline(LLAMA, ComputeSettings(flops=989e12, efficiency=0.5))
    job = Job(Sequence(0, request(0, 4096, 1), 0), 0, 4096, 0)
    dense = 2 * 8.03e9 * 4096
    attention = 32 * (4 * 32 * 128) * (4096 * 4097 / 2)
    expected_ns = (dense + attention) / (989e12 * 0.5) * 1e9
    (took_ns,) = roofline.durations_ns(Batch(0, 0, (Chunk(job, 4096),)))
    assert took_ns == pytest.approx(expected_ns, abs=1)
    assert roofline.prompt_s(4096) == pytest.approx(expected_ns / 1e9)


def test_decoding_one_sequence_takes_the_time_of_reading_weights_and_its_cache() -> None:
    roofline = Roofline(LLAMA, ComputeSettings(bytes_per_s=4.3e12))
    (took_ns,) = roofline.durations_ns(Batch(1, 1000))
    assert took_ns == pytest.approx((16.06e9 + 1001 * 131_072) / 4.3e12 * 1e9, abs=1)


def test_chunks_of_a_prompt_compute_the_pairs_of_the_whole() -> None:
    parts = []
    for start, tokens in ((0, 300), (300, 500), (800, 200)):
        job = Job(Sequence(0, request(0, 1000, 1), 0), start, 1000 - start, 0)
        parts.append(Batch(0, 0, (Chunk(job, tokens),)).chunk_pairs)
    assert sum(parts) == 1000 * 1001 // 2


def test_a_mixture_of_experts_reads_no_more_weights_than_its_tokens_can_use() -> None:
    moe = geometry("qwen3-30b-a3b")
    roofline = Roofline(moe, ComputeSettings(bytes_per_s=1e12))
    one, many = (int(roofline.durations_ns(Batch(decodes, 0))[0]) for decodes in (1, 100))
    assert one == pytest.approx(3.3e9 * 2 / 1e12 * 1e9, rel=1e-3)
    assert many == pytest.approx(30.5e9 * 2 / 1e12 * 1e9, rel=1e-3)


@given(decodes=st.integers(1, 300), context=st.integers(0, 10**7), steps=st.integers(1, 300))
def test_steps_worked_out_together_are_those_one_by_one(
    decodes: int, context: int, steps: int
) -> None:
    roofline = Roofline(LLAMA, ComputeSettings())
    together = roofline.durations_ns(Batch(decodes, context), steps)
    alone = [
        int(roofline.durations_ns(Batch(decodes, context + step * decodes))[0])
        for step in range(steps)
    ]
    assert together.tolist() == alone


def test_more_gpus_of_a_node_take_less_time_and_have_more_room() -> None:
    one, four = ComputeSettings(), ComputeSettings(devices=4)
    batch = Batch(64, 64_000)
    took = [int(Roofline(LLAMA, compute).durations_ns(batch)[0]) for compute in (one, four)]
    assert took[0] == pytest.approx(4 * took[1], rel=1e-6)
    assert kv_capacity_bytes(LLAMA, one, 1 << 30) == int(126.9e9) - 16_060_000_000 - (1 << 30)
    assert kv_capacity_bytes(LLAMA, four, 0) == int(4 * 126.9e9) - 16_060_000_000
    assert kv_capacity_bytes(LLAMA, replace(one, kv_capacity_bytes=7), 1 << 40) == 7


# -- a schedule by hand -----------------------------------------------------------------------


def test_a_tiny_schedule_is_the_one_worked_out_by_hand() -> None:
    # Every token takes 1 us, a step has 4. Steps: A 4 | A 2, B 2 | A, B | A
    served = serve([request(0, 6, 3), request(US, 2, 2)], tokens=4)
    assert served.service.first_us == {0: 8.0, 1: 8.0}
    assert served.service.last_us == {0: 11.0, 1: 10.0}
    totals, node = served.totals, served.node()
    assert totals["ttft_us"]["mean"] == pytest.approx((8 + 7) / 2)
    assert totals["tpot_us"]["mean"] == pytest.approx((3 / 2 + 2) / 2)
    assert (node["steps"], node["busy_s"]) == (4, 11e-6)
    assert node["batch_mean"] == pytest.approx((1 + 2 + 2 + 1) / 4)


def test_others_step_while_a_sequence_loads() -> None:
    # B finds 9 of its 10 tokens, in 5 us; A is never held up.
    requests = [request(0, 4, 8), request(0, 10, 1)]
    served = serve(requests, loads={1: (10, 5 * US)})
    assert served.service.first_us == {0: 4.0, 1: 7.0}  # at 5, A decodes; B joins the next step
    assert served.service.last_us[0] == 12.0
    assert served.totals["loaded_tokens"] == 9
    assert served.node()["stalled_s"] == 0


def test_a_node_stalls_while_all_that_it_has_loads_and_idles_without_requests() -> None:
    served = serve([request(0, 5, 1), request(20 * US, 1, 1)], loads={0: (4, 7 * US)})
    node = served.node()
    assert (node["stalled_s"], node["idle_s"], node["busy_s"]) == (7e-6, pytest.approx(12e-6), 2e-6)
    assert node["stall_per_step_us"] == 3.5


def test_a_prompt_that_is_all_there_computes_its_last_token() -> None:
    served = serve([request(0, 100, 1)], loads={0: (100, 0)})
    assert served.service.first_us == {0: 1.0}
    assert (served.totals["loaded_tokens"], served.totals["computed_tokens"]) == (99, 1)


def test_memory_is_kept_until_a_sequence_has_ended_and_is_written() -> None:
    # Room for one of 3 tokens: B starts when A is written, at 2 + 10 us.
    served = serve([request(0, 2, 1), request(0, 2, 1)], kv_tokens=3, write_ns=10 * US)
    assert served.service.first_us == {0: 2.0, 1: 14.0}
    assert served.node()["kv_peak_bytes"] == 3
    assert served.node()["stalled_s"] == 10e-6


def test_a_prefill_node_hands_over_what_it_has_written() -> None:
    # Prefill 4 us, write 3 us, transfer 2 us, then two decode steps of 1 us.
    served = serve([request(0, 4, 3)], roles="split", write_ns=3 * US, transfers={0: (4, 2 * US)})
    assert served.service.first_us == {0: 4.0}
    assert served.now_ns == 11 * US
    prefill, decode = served.node(0), served.node(1)
    assert (prefill["computed_tokens"], prefill["output_tokens"]) == (4, 1)
    assert (decode["loaded_tokens"], decode["computed_tokens"]) == (4, 0)
    assert decode["output_tokens"] == 2
    assert decode["load_us"]["mean"] == 2.0
    assert served.requests["stall_share"] == pytest.approx(5 / 11)


def test_a_decode_node_computes_what_it_cannot_load() -> None:
    served = serve([request(0, 4, 3)], roles="split", transfers={0: (3, 0)})
    assert served.node(1)["computed_tokens"] == 1
    assert served.now_ns == (4 + 1 + 2) * US


def test_a_turn_comes_after_the_one_before_has_ended() -> None:
    requests = [
        request(0, 10, 1),
        request(US, 2, 1, parent=0),
        request(2 * US, 3, 1),
        request(30 * US, 1, 1, parent=1),
    ]
    served = serve(requests)
    assert served.service.order == [0, 2, 1, 3]
    assert served.service.first_us == {0: 10.0, 1: 15.0, 2: 13.0 + 2.0, 3: 31.0}


def test_a_turn_that_queues_has_not_come_before_the_one_that_it_continues_has_ended() -> None:
    # With one place, A ends at 10 and B at 60; only then is the turn after A read from the trace.
    requests = [request(0, 10, 1), request(US, 50, 1), request(2 * US, 4, 1, parent=0)]
    served = serve(requests, slots=1)
    assert served.service.first_us == {0: 10.0, 1: 60.0, 2: 64.0}
    assert served.totals["ttft_us"]["mean"] == pytest.approx((10 + 59 + 54) / 3)


def test_a_full_shelf_of_held_turns_reads_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.serving.arrivals.HELD_MAX", 1)
    turns = [request(0, 2, 1, parent=number - 1) for number in range(6)]
    served = serve([*turns, request(0, 2, 1)])
    assert sorted(served.service.last_us) == list(range(7))


def test_batching_is_faster_than_one_at_a_time() -> None:
    requests = [request(0, 512, 64) for _ in range(16)]
    roofline = Roofline(LLAMA, ComputeSettings())
    batched, alone = (
        serve(requests, slots=slots, tokens=8192, roofline=roofline) for slots in (16, 1)
    )
    assert batched.totals["output_tokens"] == alone.totals["output_tokens"] == 16 * 64
    assert batched.now_ns < alone.now_ns / 7


def test_a_write_that_fails_ends_the_run_with_its_error() -> None:
    with pytest.raises(BackendError, match="the shelf is full"):
        serve([request(0, 2, 5), request(0, 2, 5)], fails=True)


def test_steps_that_had_ended_count_when_a_run_is_interrupted() -> None:
    tasks = []

    def interrupt() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        if len(tasks) == 3:
            task.cancel()

    with pytest.raises(asyncio.CancelledError):
        serve([request(number * US, 3, 1000) for number in range(9)], after_round=interrupt)
    assert len(tasks) == 3


def test_what_is_saved_compares_requests_one_by_one() -> None:
    requests = [request(0, 8, 1), request(100 * US, 8, 1), request(200 * US, 4, 0)]
    cached = serve(requests, loads={0: (7, 2 * US), 1: (7, 17 * US)})
    saved = ttft_saved(cached.service.meter, serve(requests).service.meter)
    assert saved is not None
    assert saved["mean_us"] == pytest.approx(((8 - 3) + (8 - 18)) / 2)
    assert saved["slower_share"] == 0.5
    assert saved["share"] == pytest.approx(-2.5 / 8)
    assert ttft_saved(cached.service.meter, serve([request(0, 1, 0)]).service.meter) is None


# -- laws -------------------------------------------------------------------------------------


@st.composite
def loads_of_requests(draw: st.DrawFn) -> tuple[list[Request], dict[int, tuple[int, int]]]:
    """Requests that meet, wait, continue each other; and what can be loaded of them."""
    t_ns, made, loads = 0, [], {}
    for number in range(draw(st.integers(1, 12))):
        t_ns += draw(st.sampled_from([0, 1, 3 * US, 200 * US]))
        parent = draw(st.sampled_from([NO_PARENT, NO_PARENT, *range(number)]))
        made.append(request(t_ns, draw(st.integers(0, 40)), draw(st.integers(0, 30)), parent))
        loads[number] = (draw(st.integers(0, 50)), draw(st.sampled_from([0, 7, 5 * US])))
    return made, loads


@given(
    load=loads_of_requests(),
    slots=st.integers(1, 6),
    spare_tokens=st.integers(0, 5),
    kv_tokens=st.integers(70, 200),
    write_ns=st.sampled_from([0, 9 * US]),
    roles=st.sampled_from(["one", "split"]),
)
@examples(max_examples=150, deadline=None)
def test_any_requests_are_served_within_every_bound(
    load: tuple[list[Request], dict[int, tuple[int, int]]],
    slots: int,
    spare_tokens: int,
    kv_tokens: int,
    write_ns: int,
    roles: str,
) -> None:
    requests, loads = load
    bounds = {"slots": slots, "kv_tokens": kv_tokens, "tokens": slots + spare_tokens}
    served = serve(requests, loads=loads, transfers=loads, write_ns=write_ns, roles=roles, **bounds)
    prompts = sum(max(1, one.in_tokens) for one in requests)
    answers = sum(one.out_tokens for one in requests)
    totals, nodes = served.totals, [served.node(number) for number in range(len(ROLES[roles]))]
    assert served.requests["count"] == len(requests)
    assert totals["output_tokens"] == sum(node["output_tokens"] for node in nodes) == answers
    assert totals["prompt_tokens"] == prompts
    assert totals["loaded_tokens"] + totals["computed_tokens"] == prompts
    assert nodes[0]["loaded_tokens"] == totals["loaded_tokens"]
    assert nodes[0]["computed_tokens"] == totals["computed_tokens"]
    for node in nodes:
        assert node["batch_tokens_peak"] <= bounds["tokens"]
        assert node["kv_peak_bytes"] <= kv_tokens
        assert node["idle_s"] >= -1e-12
    if roles == "one":
        ready = [number for number, one in enumerate(requests) if one.parent == NO_PARENT]
        order = [number for number in served.service.order if number in ready]
        assert order == ready  # first come, first served: nobody starves


@given(load=loads_of_requests(), slots=st.integers(1, 6))
@examples(max_examples=60, deadline=None)
def test_steps_taken_together_come_to_what_single_steps_do(
    load: tuple[list[Request], dict[int, tuple[int, int]]], slots: int
) -> None:
    requests, loads = load
    # Odd times, so that no load ends at the very end of a step.
    loads = {number: (tokens, took + 1) for number, (tokens, took) in loads.items()}
    with pytest.MonkeyPatch.context() as patch:
        results = []
        for steps_max in (4096, 1):
            patch.setattr("kvtier.serving.engine._STEPS_MAX", steps_max)
            served = serve(requests, loads=loads, slots=slots, tokens=slots)
            results.append((served.totals, served.requests, served.node(), served.now_ns))
    assert results[0] == results[1]


@given(load=loads_of_requests(), slots=st.integers(1, 6))
@examples(max_examples=60, deadline=None)
def test_littles_law_holds(
    load: tuple[list[Request], dict[int, tuple[int, int]]], slots: int
) -> None:
    requests, loads = load
    served = serve(requests, loads=loads, slots=slots)
    node = served.node()
    latency_s = served.requests["latency_us"]["mean"] * len(requests) / 1e6
    queued_s = node["queue_us"]["mean"] * len(requests) / 1e6
    in_flight_s = served.requests["in_flight_mean"] * served.now_ns / 1e9 if served.now_ns else 0
    assert in_flight_s == pytest.approx(latency_s - queued_s, rel=1e-9, abs=1e-12)


@given(
    jobs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=9),
    tokens_max=st.integers(9, 20),
)
def test_a_batcher_computes_every_token_once_and_in_order(
    jobs: list[tuple[int, int]], tokens_max: int
) -> None:
    batcher = Batcher(tokens_max)
    added = [
        Job(Sequence(number, request(0, 1, 1), 0), 5, prompt, decode)
        for number, (prompt, decode) in enumerate(jobs)
        if prompt + decode
    ]
    for job in added:
        batcher.add(job)
    expected = sum(prompt + decode for prompt, decode in jobs)
    done, ended, computed = 0, [], []
    while (batch := batcher.plan()) is not None:
        assert 0 < batch.tokens <= tokens_max
        done += batch.tokens
        assert batch.context >= 5 * batch.decodes
        first, last = batcher.advance(batch, 1)
        computed += [job.sequence.number for job in first]
        ended += last
    assert done == expected
    assert {job.sequence.number for job in ended} == {job.sequence.number for job in added}
    assert computed == sorted(computed)
    assert all(job.context == 5 + sum(jobs[job.sequence.number]) for job in ended)

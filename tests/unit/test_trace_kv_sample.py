"""The recorded KV sample that comes with the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvtier.pages import U32, Purpose
from kvtier.trace import PageRequest, PageTrace, inspect_trace, open_trace

SAMPLE = Path(__file__).parents[2] / "traces" / "kv-sample.parquet"
LAYERS = 4
KV_HEADS = 2
CHOSEN = 8
BLOCK_PAGES = LAYERS * 2 * KV_HEADS


@pytest.fixture(scope="module")
def trace() -> PageTrace:
    opened = open_trace(SAMPLE)
    assert isinstance(opened, PageTrace)
    return opened


@pytest.fixture(scope="module")
def turns(trace: PageTrace) -> list[PageRequest]:
    return list(trace.requests())


def prefix_load(turn: PageRequest) -> U32:
    """The objects that a turn loads at admission: all of batch 0, where that is its purpose."""
    loaded = turn.objects[: turn.ends[0]]
    return loaded if turn.purposes[0] == Purpose.PREFIX else loaded[:0]


def sparse_reads(turn: PageRequest) -> tuple[U32, U32]:
    """Objects and pages that a turn reads in decoding: u32[batches, kv heads, chosen, 2] each."""
    first = len(prefix_load(turn))
    sides = (-1, KV_HEADS, CHOSEN, 2)
    return turn.objects[first:].reshape(sides), turn.pages[first:].reshape(sides)


def test_the_kv_sample_is_small_and_says_where_it_comes_from(trace: PageTrace) -> None:
    assert SAMPLE.stat().st_size <= 1_000_000
    assert "traces/recorders/kv_decode.py" in trace.metadata.provenance
    assert "nats per token" in trace.metadata.provenance
    assert [text.split(":")[0] for text in trace.metadata.synthetic] == ["t_ns"]
    assert SAMPLE.name in (SAMPLE.parent / "PROVENANCE.md").read_text()


def test_the_kv_sample_is_what_was_recorded() -> None:
    facts = inspect_trace(SAMPLE)
    assert (facts["requests"], facts["requests_read"]) == (48, 48)
    assert (facts["references"], facts["unique"]) == (197_808, 15_412)
    assert facts["written_pages"] == 0
    assert facts["purposes"] == {"prefix": 76_848, "sparse": 120_960}


def test_every_turn_but_the_first_begins_with_its_prefix_load(turns: list[PageRequest]) -> None:
    assert [int(turn.purposes[0]) for turn in turns] == [Purpose.SPARSE] + [Purpose.PREFIX] * 47
    assert all((turn.purposes[1:] == Purpose.SPARSE).all() for turn in turns)


def test_prefix_loads_read_whole_blocks_and_sparse_reads_single_pages(
    turns: list[PageRequest],
) -> None:
    for turn in turns:
        loaded = len(prefix_load(turn))
        assert (turn.counts[:loaded] == BLOCK_PAGES).all()
        assert (turn.counts[loaded:] == 1).all()


def test_a_prefix_load_reads_no_block_twice(turns: list[PageRequest]) -> None:
    for turn in turns:
        load = prefix_load(turn)
        assert len(np.unique(load)) == len(load)


def test_every_session_shares_the_first_block(turns: list[PageRequest]) -> None:
    assert {int(prefix_load(turn)[0]) for turn in turns[1:]} == {0}


def test_a_sparse_batch_reads_keys_and_values_of_one_layer(turns: list[PageRequest]) -> None:
    for turn in turns:
        objects, pages = sparse_reads(turn)
        assert (objects[..., 0] == objects[..., 1]).all()
        layer = (np.arange(len(pages)) % LAYERS)[:, None, None]
        head = np.arange(KV_HEADS)[None, :, None]
        assert (pages[..., 0] == 2 * KV_HEADS * layer + head).all()
        assert (pages[..., 1] == pages[..., 0] + KV_HEADS).all()


def test_a_head_chooses_distinct_blocks(turns: list[PageRequest]) -> None:
    for turn in turns:
        chosen = np.sort(sparse_reads(turn)[0][..., 0], axis=-1)
        assert (np.diff(chosen.astype(np.int64), axis=-1) > 0).all()


def test_the_blocks_chosen_change_from_step_to_step(turns: list[PageRequest]) -> None:
    chosen = sparse_reads(turns[0])[0][::LAYERS, 0, :, 0]
    assert len(np.unique(chosen, axis=0)) > 1

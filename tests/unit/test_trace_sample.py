"""The recorded sample that comes with the repository."""

from __future__ import annotations

from pathlib import Path

from kvtier.trace import PageTrace, inspect_trace, open_trace

SAMPLE = Path(__file__).parents[2] / "traces" / "sample.parquet"


def test_the_sample_is_small_and_says_where_it_comes_from() -> None:
    assert SAMPLE.stat().st_size <= 1_000_000
    metadata = open_trace(SAMPLE).metadata
    assert "traces/recorders/hnsw.py" in metadata.provenance
    assert "100.00% of faiss's own results" in metadata.provenance
    assert [text.split(":")[0] for text in metadata.synthetic] == ["t_ns"]
    assert (SAMPLE.parent / "PROVENANCE.md").exists()


def test_the_sample_is_what_was_recorded() -> None:
    facts = inspect_trace(SAMPLE)
    assert (facts["requests"], facts["requests_read"]) == (1500, 1500)
    assert (facts["references"], facts["unique"]) == (110_791, 19_745)
    assert facts["written_pages"] == 0
    assert facts["purposes"] == {"sparse": 110_791}
    assert facts["pages_per_batch"]["max"] == 4


def test_every_search_of_the_sample_enters_the_graph_at_the_same_node() -> None:
    trace = open_trace(SAMPLE)
    assert isinstance(trace, PageTrace)
    entries = {int(request.pages[0]) for request in trace.requests()}
    assert len(entries) == 1


def test_a_search_of_the_sample_reads_no_page_twice() -> None:
    trace = open_trace(SAMPLE)
    assert isinstance(trace, PageTrace)
    for request in trace.requests(200):
        assert len(set(request.pages.tolist())) == len(request.pages)

"""What of the s3 backend needs no store: names, plans, its documentation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvtier_s3.names import NAME_BYTES_MAX, key_bytes_max, key_of, name_of
from kvtier_s3.options import OPTIONS
from kvtier_s3.planning import plan_requests

from kvtier.backend import ExtentBatch
from kvtier.registry import available
from kvtier.testing.contract.naming import AWKWARD_KEYS

FOLDER = "team/cache/objects/"
LONGEST = key_bytes_max(FOLDER)


def test_it_is_found_by_its_name() -> None:
    assert available()["s3"] == "kvtier_s3:S3Backend"


def test_every_option_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/backends.md").read_text()
    section = page.partition("\n## `s3`\n")[2].partition("\n## ")[0]
    rows = "".join(line.partition(" | ")[0] for line in section.splitlines() if line[:1] == "|")
    assert set(re.findall(r"`(\w+)`", rows)) == set(OPTIONS)


class TestNames:
    @settings(deadline=None)
    @given(st.one_of(st.sampled_from(AWKWARD_KEYS), st.binary(min_size=1, max_size=LONGEST)))
    def test_a_key_comes_back_from_its_name(self, key: bytes) -> None:
        assert key_of(name_of(key)) == key

    @settings(deadline=None)
    @given(st.binary(min_size=1, max_size=LONGEST))
    def test_a_name_is_plain_and_fits(self, key: bytes) -> None:
        name = name_of(key)
        assert name.isascii()
        assert all(byte.isalnum() or byte in "_-=/" for byte in name)
        assert len(FOLDER + name) <= NAME_BYTES_MAX
        assert all(0 < len(segment) <= 255 for segment in name.split("/"))

    @pytest.mark.parametrize("byte", [b"a", b"/", b"\xff"])
    def test_the_longest_key_is_the_longest(self, byte: bytes) -> None:
        assert len(FOLDER + name_of(byte * LONGEST)) <= NAME_BYTES_MAX
        assert len(FOLDER + name_of(byte * (LONGEST + 1))) > NAME_BYTES_MAX

    def test_no_name_is_a_folder_of_another(self) -> None:
        names = {name_of(b"a" * length) for length in range(1, LONGEST + 1)}
        folders = {name[:index] for name in names for index, byte in enumerate(name) if byte == "/"}
        assert folders
        assert not folders & names

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "a b",
            "a/b",
            "=6",
            "=61",
            "=2f",
            "a.b",
            "==",
            "==YQ",
            "==!",
            "a=",
            "ä",
            "==" + "A" * 500,
        ],
    )
    def test_a_foreign_name_is_no_key(self, name: str) -> None:
        assert key_of(name) is None


def make_batch(extents: list[tuple[int, int, int, int]]) -> ExtentBatch:
    """Extents of (key index, first page, pages, row)."""
    columns = np.array(extents, np.uint32).reshape(-1, 4)
    key, first, count, row = (np.ascontiguousarray(columns[:, index]) for index in range(4))
    keys = tuple(b"%d" % index for index in range(int(key.max()) + 1))
    return ExtentBatch(keys, np.ones(len(keys), np.uint64), key, first, count, row)


def requests_of(
    extents: list[tuple[int, int, int, int]], gap: int = 0, longest: int = 100
) -> list[tuple[int, int, int]]:
    plan = plan_requests(make_batch(extents), gap, longest)
    columns = (plan.key_index, plan.first_page, plan.stop_page)
    return list(zip(*(column.tolist() for column in columns), strict=True))


class TestPlanning:
    def test_extents_that_meet_are_one_request(self) -> None:
        assert requests_of([(0, 4, 4, 0), (0, 0, 4, 9), (0, 2, 3, 20)]) == [(0, 0, 8)]

    def test_extents_with_a_gap_are_one_request_where_it_may_be_that_wide(self) -> None:
        extents = [(0, 0, 2, 0), (0, 5, 1, 2)]
        assert requests_of(extents, gap=2) == [(0, 0, 2), (0, 5, 6)]
        assert requests_of(extents, gap=3) == [(0, 0, 6)]

    def test_extents_of_two_objects_are_two_requests(self) -> None:
        last = 2**32 - 2
        extents = [(1, 0, 1, 0), (0, last, 3, 1)]
        assert requests_of(extents, gap=1 << 20) == [(0, last, last + 3), (1, 0, 1)]

    def test_a_long_request_is_cut(self) -> None:
        assert requests_of([(0, 1, 7, 0)], longest=3) == [(0, 1, 4), (0, 4, 7), (0, 7, 8)]

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.integers(0, 30), st.integers(1, 20), st.integers(0, 1000)
            ),
            min_size=1,
            max_size=20,
        ),
        st.integers(0, 5),
        st.integers(1, 12),
    )
    def test_the_pieces_bring_every_page_to_its_row(
        self, extents: list[tuple[int, int, int, int]], gap: int, longest: int
    ) -> None:
        plan = plan_requests(make_batch(extents), gap, longest)
        brought = []
        for request in range(len(plan)):
            first, stop = int(plan.first_page[request]), int(plan.stop_page[request])
            assert 0 < stop - first <= longest
            for piece in range(int(plan.pieces[request]), int(plan.pieces[request + 1])):
                offset, count = int(plan.offset[piece]), int(plan.page_count[piece])
                assert 0 <= offset < offset + count <= stop - first
                key, extent = int(plan.key_index[request]), int(plan.extent[piece])
                brought += [
                    (extent, key, first + offset + page, int(plan.row[piece]) + page)
                    for page in range(count)
                ]
        wanted = [
            (extent, key, first + page, row + page)
            for extent, (key, first, count, row) in enumerate(extents)
            for page in range(count)
        ]
        assert sorted(brought) == sorted(wanted)

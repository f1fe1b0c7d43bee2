from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from kvtier_mooncake.layout import (
    HEAD_BYTES,
    Head,
    Names,
    chunk_name,
    chunk_names,
    new_version,
    pack_head,
    unpack_head,
)

KEYS = st.binary(min_size=1, max_size=64)
HEADS = st.builds(
    Head,
    st.integers(1, (1 << 64) - 1),
    st.integers(1, (1 << 32) - 1),
    st.integers(1, (1 << 32) - 1),
)


@given(KEYS, KEYS)
def test_two_keys_have_two_names_and_share_none_with_a_chunk(one: bytes, other: bytes) -> None:
    names = Names("space/a@b", 512)
    assert (names.head(one) == names.head(other)) == (one == other)
    assert chunk_name(names.head(one), 7, 0) != names.head(other)
    assert names.head(one).startswith(names.prefix)
    assert names.head(one).isascii()
    assert names.head(one).isprintable()


def test_stores_of_other_namespaces_and_page_sizes_have_other_names() -> None:
    stores = [Names("a", 512), Names("a", 4096), Names("a/512", 512), Names("b", 512)]
    assert len({names.head(b"key") for names in stores}) == len(stores)


@given(KEYS, HEADS)
def test_a_head_comes_back(key: bytes, head: Head) -> None:
    name = Names("a", 512).head(key)
    record = pack_head(name, head)
    assert len(record) == HEAD_BYTES
    assert unpack_head(name, record) == head


@given(HEADS, st.integers(0, HEAD_BYTES - 1), st.integers(1, 255))
def test_a_head_with_a_wrong_byte_is_none(head: Head, at: int, flip: int) -> None:
    record = bytearray(pack_head("a", head))
    record[at] ^= flip
    assert unpack_head("a", bytes(record)) is None


@given(HEADS)
def test_the_head_of_another_name_is_none(head: Head) -> None:
    assert unpack_head("b", pack_head("a", head)) is None


def test_a_short_record_and_a_record_of_zeros_are_none() -> None:
    assert unpack_head("a", b"") is None
    assert unpack_head("a", pack_head("a", Head(1, 1, 1))[:-1]) is None
    assert unpack_head("a", bytes(HEAD_BYTES)) is None


def test_an_object_has_as_many_chunks_as_its_pages_need() -> None:
    for pages, chunks in ((1, 1), (3, 1), (4, 2), (6, 2), (7, 3)):
        assert len(chunk_names("a", Head(5, pages, 3))) == chunks


def test_versions_are_never_zero_and_hardly_ever_the_same() -> None:
    versions = {new_version() for _ in range(10_000)}
    assert len(versions) == 10_000
    assert 0 not in versions

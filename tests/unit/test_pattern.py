import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.pages import U8, U32, U64
from kvtier.pattern import check_pattern, fill_pattern, key_fingerprint

ROW_BYTES = 512


def pages(*values: int) -> U32:
    return np.array(values, np.uint32)


def prints(*values: int) -> U64:
    return np.array(values, np.uint64)


def page_of(fingerprint: int, page: int) -> U8:
    out = np.empty((1, ROW_BYTES), np.uint8)
    fill_pattern(out, prints(fingerprint), pages(page))
    return out


def matches(row: U8, fingerprint: int, page: int) -> bool:
    return bool(check_pattern(row, None, prints(fingerprint), pages(page))[0])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=8))
def test_what_is_filled_matches(identities: list[tuple[int, int]]) -> None:
    fingerprints = prints(*(identity[0] for identity in identities))
    numbers = pages(*(identity[1] for identity in identities))
    out = np.zeros((len(identities) + 1, ROW_BYTES), np.uint8)
    fill_pattern(out, fingerprints, numbers)
    assert check_pattern(out, None, fingerprints, numbers).all()
    assert not out[-1].any()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.data())
def test_another_identity_does_not_match(fingerprint: int, page: int, data: st.DataObject) -> None:
    other_print = data.draw(st.integers(0, 2**64 - 1) | st.just(fingerprint))
    other_page = data.draw(st.integers(0, 2**32 - 1) | st.just(page))
    same = (other_print, other_page) == (fingerprint, page)
    assert matches(page_of(fingerprint, page), other_print, other_page) == same


@pytest.mark.parametrize(("fingerprint", "page"), [(0, 0), (1, 1), (5, 7), (7, 5), (1 << 63, 0)])
def test_swapped_halves_of_an_identity_do_not_match(fingerprint: int, page: int) -> None:
    if fingerprint != page:
        assert not matches(page_of(fingerprint, page), page, fingerprint & 0xFFFF_FFFF)


def test_no_two_words_of_many_pages_are_equal() -> None:
    numbers = np.arange(256, dtype=np.uint32)
    out = np.empty((512, ROW_BYTES), np.uint8)
    fill_pattern(out, np.repeat(prints(1, 2), 256), np.tile(numbers, 2))
    words = out.view(np.uint64).ravel()
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize("words", range(1, ROW_BYTES // 8))
def test_a_shifted_page_does_not_match(words: int) -> None:
    shifted = np.roll(page_of(3, 4), 8 * words, axis=1)
    assert not matches(shifted, 3, 4)


@pytest.mark.parametrize("word", range(ROW_BYTES // 8))
def test_a_page_torn_at_one_word_does_not_match(word: int) -> None:
    torn = page_of(3, 4)
    torn[:, 8 * word : 8 * word + 8] = page_of(9, 4)[:, 8 * word : 8 * word + 8]
    assert not matches(torn, 3, 4)


@pytest.mark.parametrize("byte", [0, 255, ROW_BYTES - 1])
def test_one_flipped_bit_does_not_match(byte: int) -> None:
    flipped = page_of(3, 4)
    flipped[0, byte] ^= 1
    assert not matches(flipped, 3, 4)


def test_zeros_match_nothing() -> None:
    assert not matches(np.zeros((1, ROW_BYTES), np.uint8), 0, 0)


def test_rows_are_selected_by_number() -> None:
    rows = np.concatenate([page_of(1, 1), page_of(2, 2), page_of(3, 3)])
    fingerprints, numbers = prints(3, 1, 2), pages(3, 1, 9)
    found = check_pattern(rows, np.array([2, 0, 1]), fingerprints, numbers)
    assert found.tolist() == [True, True, False]


def test_page_numbers_may_be_u64() -> None:
    assert check_pattern(page_of(1, 7), None, prints(1), prints(7)).tolist() == [True]


def test_the_fingerprint_is_the_start_of_blake2b() -> None:
    digest = hashlib.blake2b(b"a key").digest()
    assert key_fingerprint(b"a key") == int.from_bytes(digest[:8], "little")


def test_pages_and_fingerprints_go_together() -> None:
    with pytest.raises(ValueError, match="pages is uint32"):
        fill_pattern(np.empty((2, ROW_BYTES), np.uint8), prints(1), pages(1, 2))
    with pytest.raises(ValueError, match="pages is int64"):
        check_pattern(page_of(1, 1), None, prints(1), np.array([1]))  # type: ignore[arg-type]


def test_rows_must_be_whole_words() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        fill_pattern(np.empty((1, 12), np.uint8), prints(1), pages(1))


def test_out_must_be_large_enough_and_writable() -> None:
    with pytest.raises(ValueError, match="out has 1 rows, but 2"):
        fill_pattern(np.empty((1, 64), np.uint8), prints(1, 2), pages(1, 2))
    read_only = np.zeros((1, 64), np.uint8)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fill_pattern(read_only, prints(1), pages(1))

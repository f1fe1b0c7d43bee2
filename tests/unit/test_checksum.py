import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.checksum import copy_and_sum, xxh64_rows
from kvtier.pages import U8

PRIME_32 = 2654435761


def sanity_buffer(length: int) -> U8:
    """The buffer that xxHash's own sanity checks hash (``tests/sanity_test.c``)."""
    state, out = PRIME_32, bytearray()
    for _ in range(length):
        out.append(state >> 56)
        state = state * 0x9E37_79B1_85EB_CA8D % (1 << 64)
    return np.frombuffer(bytes(out), np.uint8).reshape(1, length)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), stripes=st.integers(1, 40), count=st.integers(0, 5))
def test_every_sum_is_that_of_the_reference_implementation(
    data: st.DataObject, stripes: int, count: int
) -> None:
    rows = np.frombuffer(
        data.draw(st.binary(min_size=96 * stripes, max_size=96 * stripes)), np.uint8
    )
    rows = rows.reshape(3, 32 * stripes)
    index = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    seeds = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=count, max_size=count))
    sums = xxh64_rows(rows, np.array(index, np.int64), np.array(seeds, np.uint64))
    assert sums.tolist() == [
        xxhash.xxh64_intdigest(rows[row].tobytes(), seed)
        for row, seed in zip(index, seeds, strict=True)
    ]


@pytest.mark.parametrize(
    ("length", "seed", "expected"),
    [
        (32, 0, 0x18B2_1649_2BB4_4B70),
        (32, PRIME_32, 0xB3F3_3BDF_93AD_E409),
        (64, 0, 0xEF55_8F8A_CAC2_B5CD),
        (512, 0, 0x4358_D2FD_D62B_58A7),
        (4096, 0, 0xAB77_F4AF_85F4_E70B),
    ],
)
def test_published_vectors(length: int, seed: int, expected: int) -> None:
    sums = xxh64_rows(sanity_buffer(length), None, np.array([seed], np.uint64))
    assert int(sums[0]) == expected


def test_no_row_numbers_mean_the_first_rows() -> None:
    rows = np.arange(4 * 64, dtype=np.uint8).reshape(4, 64)
    seeds = np.arange(3, dtype=np.uint64)
    expected = xxh64_rows(rows, np.arange(3), seeds)
    assert xxh64_rows(rows, None, seeds).tolist() == expected.tolist()


def test_rows_may_lie_at_any_address() -> None:
    memory = np.random.default_rng(1).integers(0, 256, 65, np.uint8)
    rows = memory[1:].reshape(1, 64)
    seeds = np.zeros(1, np.uint64)
    assert xxh64_rows(rows, None, seeds).tolist() == xxh64_rows(rows.copy(), None, seeds).tolist()


@pytest.mark.parametrize("row_bytes", [0, 8, 40])
def test_rows_must_be_whole_stripes(row_bytes: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        xxh64_rows(np.zeros((1, row_bytes), np.uint8), None, np.zeros(1, np.uint64))


def test_a_row_number_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="outside rows"):
        xxh64_rows(np.zeros((1, 32), np.uint8), np.array([1]), np.zeros(1, np.uint64))


def test_each_row_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="2 row numbers, but 1"):
        xxh64_rows(np.zeros((2, 32), np.uint8), np.array([0, 1]), np.zeros(1, np.uint64))


@pytest.mark.parametrize("shift", [0, 1, 8])
def test_rows_are_summed_as_they_are_copied(shift: int) -> None:
    rng = np.random.default_rng(1)
    memory = rng.integers(0, 256, 20 * 512 + shift, np.uint8)
    source = memory[shift:].reshape(20, 512)
    source.flags.writeable = False
    target = np.zeros((30, 512), np.uint8)
    rows, to = rng.permutation(20)[:12], rng.permutation(30)[:12]
    seeds = rng.integers(0, 1 << 63, 12, np.uint64)
    sums = copy_and_sum(target, to, source, rows, seeds)
    np.testing.assert_array_equal(target[to], source[rows])
    assert np.count_nonzero(target.any(axis=1)) == 12
    np.testing.assert_array_equal(sums, xxh64_rows(source[rows], None, seeds))


def test_rows_of_other_sizes_are_neither_copied_nor_summed() -> None:
    one, none = np.zeros(1, np.int64), np.zeros((1, 64), np.uint8)
    with pytest.raises(ValueError, match="rows are 64 and 32 bytes: they must be the same"):
        copy_and_sum(none, one, np.ones((1, 32), np.uint8), one, np.zeros(1, np.uint64))
    assert not none.any()

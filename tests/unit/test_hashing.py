from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.hashing import fmix64, fmix64_int, seed_word, set_of
from kvtier.pages import SETS_MAX

words = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("word", "mixed"),
    [(0, 0), (1, 0xB456_BCFC_34C2_CB2C), (2**64 - 1, 0x64B5_720B_4B82_5F21)],
)
def test_known_values_of_the_finalizer(word: int, mixed: int) -> None:
    assert fmix64_int(word) == mixed


@settings(deadline=None)  # the first example waits for the compiler
@given(words)
def test_compiled_and_plain_finalizer_agree(word: int) -> None:
    assert int(fmix64(np.uint64(word))) == fmix64_int(word)


@settings(deadline=None)  # as above
@given(words, st.integers(1, SETS_MAX))
def test_the_set_is_the_high_half_of_the_product(hashed: int, sets: int) -> None:
    assert int(set_of(np.uint64(hashed), np.uint64(sets))) == hashed * sets >> 64


@given(words, words)
def test_sets_ascend_with_the_hash(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert set_of(np.uint64(low), np.uint64(77)) <= set_of(np.uint64(high), np.uint64(77))


def test_small_seeds_are_mixed_to_unlike_words() -> None:
    seeds = [seed_word(seed) for seed in range(-4, 100)]
    assert len(set(seeds)) == len(seeds)
    assert all((a ^ b).bit_count() > 8 for a, b in pairwise(seeds))


def test_dense_ids_hash_differently_under_every_seed() -> None:
    def hashes(seed: int) -> set[int]:
        return {fmix64_int(page ^ seed_word(seed)) for page in range(256)}

    assert not hashes(1) & hashes(2)

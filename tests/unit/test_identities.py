"""What object ids mean: the table against a dict, and objects that nobody has opened yet."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.identities import (
    FINGERPRINT,
    GENERATION,
    KEY,
    LENGTH,
    VERSION,
    Identities,
    UnopenedObjects,
    find_rows,
    fingerprint_of,
)
from kvtier.pages import I64, U64

OBJECT_IDS = st.one_of(st.integers(0, 40), st.integers(0, (1 << 32) - 1))


def rows_of(identities: Identities, page_ids: U64) -> I64:
    rows = np.empty(len(page_ids), np.int64)
    find_rows(identities.table, page_ids, rows)
    return rows


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), OBJECT_IDS), max_size=300))
def test_the_table_knows_what_a_dict_knows(steps: list[tuple[bool, int]]) -> None:
    identities = Identities(1 << 10)
    model: dict[int, int] = {}
    for number, (puts, object_id) in enumerate(steps):
        if not puts:
            identities.remove(object_id)
            model.pop(object_id, None)
        elif object_id not in model:
            fingerprint = fingerprint_of(b"%d" % object_id)
            identities.put(object_id, fingerprint, number, number + 1, local=bool(number % 2))
            model[object_id] = number
    assert len(identities) == len(model)
    asked = np.array([*model, 7, 9, 1 << 20, *(key for _, key in steps)], np.uint64)
    rows = rows_of(identities, asked << np.uint64(32) | np.uint64(5))
    for object_id, row in zip(asked.tolist(), rows.tolist(), strict=True):
        assert (row >= 0) == (object_id in model) == (object_id in identities)
        if row >= 0:
            values = identities.table[row]
            number = model[object_id]
            prints = values[FINGERPRINT : FINGERPRINT + 2].tobytes()
            assert prints == fingerprint_of(b"%d" % object_id)
            assert (int(values[KEY]), int(values[VERSION])) == (object_id + 1, number)
            assert int(values[LENGTH]) == (number + 1 | (number % 2) << 33)


def test_objects_in_a_row_take_neighbouring_rows_without_a_long_search() -> None:
    identities = Identities(1 << 20)
    for object_id in range(5000):
        identities.put(object_id, bytes(16), 0, 1, local=False)
    page_ids = np.arange(5000, dtype=np.uint64) << np.uint64(32)
    assert len(np.unique(rows_of(identities, page_ids))) == 5000
    assert len(identities.table) <= 4 * 5000


def objects(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Object i is key b"i", id 100 + i; the later ones were written earlier."""
    identities = Identities(count)
    for number in range(count):
        identities.put(
            100 + number, fingerprint_of(b"%d" % number), 7, 3 + number, local=number % 2 == 0
        )
    rows = identities.table[identities.table[:, KEY] > 0]
    rows[:, GENERATION] = 1000 - rows[:, KEY]
    return rows


def test_an_unopened_object_is_found_by_its_key_and_taken_once() -> None:
    unopened = UnopenedObjects(objects(20))
    assert unopened.find(fingerprint_of(b"nobody")) is None
    found = unopened.find(fingerprint_of(b"4"))
    assert found is not None
    assert (found.object_id, found.version, found.pages, found.local) == (104, 7, 7, True)
    assert unopened.take(fingerprint_of(b"4")) == found
    assert unopened.take(fingerprint_of(b"4")) is None
    assert len(unopened) == 19


def test_the_unopened_object_that_was_written_longest_ago_goes_first() -> None:
    unopened = UnopenedObjects(objects(4))
    assert unopened.take(fingerprint_of(b"2")) is not None
    assert [unopened.take_oldest().object_id for _ in range(3)] == [103, 101, 100]
    assert not unopened

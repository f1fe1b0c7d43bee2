"""A page request becomes the steps that a run drives: its batches, in order."""

from __future__ import annotations

import numpy as np
import pytest
from small_traces import Batch, page_request

from kvtier.errors import TraceError
from kvtier.replay.active import PageIo, Reads
from kvtier.trace import READ, WRITE

OBJECT_IDS = np.array([7, 4], np.uint32)


def test_each_batch_is_one_read_of_the_pages_of_its_extents() -> None:
    request = page_request(0, Batch(READ, 0, [(0, 5, 3)]), Batch(READ, 9, [(1, 0, 1), (0, 2, 2)]))
    steps = PageIo(request, OBJECT_IDS).steps()
    read = [step.page_ids.tolist() for step in steps if isinstance(step, Reads)]
    pages = [[divmod(page_id, 1 << 32) for page_id in page_ids] for page_ids in read]
    assert pages == [[(7, 5), (7, 6), (7, 7)], [(4, 0), (7, 2), (7, 3)]]


def test_a_request_that_writes_is_refused_before_its_first_step() -> None:
    request = page_request(3, Batch(READ, 0, [(0, 0, 1)]), Batch(WRITE, 1, [(0, 1, 1)]))
    with pytest.raises(TraceError, match="request 3 writes pages of an object"):
        next(PageIo(request, OBJECT_IDS).steps())

"""The threads that call Mooncake's client, without Mooncake."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial

import numpy as np
from kvtier_mooncake.workers import Workers

from kvtier.pages import U8


def test_a_cancelled_call_lets_go_of_its_memory_while_all_threads_hang() -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(slot: U8) -> int:
        hangs.set()
        goes_on.wait()
        return len(slot)

    def copy(payload: U8, slot: U8) -> None:
        slot[:] = payload

    workers = Workers([np.zeros(8, np.uint8)], "test")
    hanging = workers.submit(hang)
    hangs.wait()
    payload = np.ones(8, np.uint8)
    waiting = workers.submit(partial(copy, payload))
    held = weakref.ref(payload)
    del payload
    assert held() is not None
    assert waiting.cancel()
    gc.collect()
    assert held() is None
    goes_on.set()
    assert hanging.result() == 8
    assert workers.end(10)

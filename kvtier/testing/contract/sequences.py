"""Random sequences of calls, each checked against a dict."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.backend import Backend
from kvtier.pages import U8, PageStatus
from kvtier.testing.batches import check_status, list_keys, make_extents, make_objects
from kvtier.testing.contract.base import ContractBase, needs_writable

_KEYS: Final = (b"a", b"a/b", b"\x00", b"..", b"\xff" * 40)
_PAGES_MAX: Final = 6
_SEQUENCE_S: Final = 30
"""A backend that never answers must not hang the search for the shortest sequence."""

_SOME_KEYS: Final = st.lists(st.sampled_from(_KEYS), unique=True, max_size=len(_KEYS))


@dataclass(frozen=True)
class Put:
    page_counts: dict[bytes, int]


@dataclass(frozen=True)
class Delete:
    keys: list[bytes]


@dataclass(frozen=True)
class Stat:
    keys: list[bytes]


@dataclass(frozen=True)
class Read:
    extents: list[tuple[bytes, int, int]]
    """Key, first page, pages; some of it may be past the end."""
    stale: bool
    """Ask for the version that the key had before the present one."""


@dataclass(frozen=True)
class List:
    pass


Step: TypeAlias = Put | Delete | Stat | Read | List

_EXTENT: Final = st.tuples(
    st.sampled_from(_KEYS), st.integers(0, _PAGES_MAX - 1), st.integers(1, _PAGES_MAX)
)
_STEP: Final = st.one_of(
    st.builds(Put, st.dictionaries(st.sampled_from(_KEYS), st.integers(1, _PAGES_MAX))),
    st.builds(Delete, _SOME_KEYS),
    st.builds(Stat, st.lists(st.sampled_from(_KEYS), max_size=8)),
    st.builds(Read, st.lists(_EXTENT, max_size=8), st.booleans()),
    st.just(List()),
)


@dataclass
class Model:
    """What a backend should hold.

    Attributes:
        pages: of every object there is.
        versions: its version.
        earlier: the version before that, of every key that had one.
    """

    pages: dict[bytes, U8] = field(default_factory=dict)
    versions: dict[bytes, int] = field(default_factory=dict)
    earlier: dict[bytes, int] = field(default_factory=dict)

    def forget(self, key: bytes) -> None:
        if key in self.versions:
            self.earlier[key] = self.versions.pop(key)
            del self.pages[key]


class SequencesContract(ContractBase):
    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,  # every example empties the store first
            HealthCheck.differing_executors,  # the test is inherited by one class per backend
        ],
    )
    @given(steps=st.lists(_STEP, max_size=25))
    async def test_any_sequence_of_calls_agrees_with_a_dict(
        self, backend: Backend, steps: list[Step]
    ) -> None:
        needs_writable(backend)
        async with asyncio.timeout(_SEQUENCE_S):
            await self.take(backend, steps)

    async def take(self, backend: Backend, steps: list[Step]) -> None:
        """Take the steps, on a store that is emptied first."""
        await backend.delete(_KEYS)
        model = Model()
        for generation, step in enumerate(steps):
            match step:
                case Put(page_counts):
                    await self.step_put(backend, model, page_counts, generation)
                case Delete(keys):
                    await self.step_delete(backend, model, keys)
                case Stat(keys):
                    await self.step_stat(backend, model, keys)
                case Read():
                    await self.step_read(backend, model, step)
                case List():
                    if backend.capability.listable:
                        assert set(await list_keys(backend)) == set(model.pages)

    async def step_put(
        self, backend: Backend, model: Model, page_counts: dict[bytes, int], generation: int
    ) -> None:
        objects = {key: self.make(key, count, generation) for key, count in page_counts.items()}
        result = await backend.put(make_objects(objects, self.page_bytes))
        assert not result.status.any()
        for (key, pages), version in zip(objects.items(), result.versions.tolist(), strict=True):
            assert version not in (0, model.versions.get(key), model.earlier.get(key))
            model.forget(key)
            model.pages[key], model.versions[key] = pages, version

    async def step_delete(self, backend: Backend, model: Model, keys: list[bytes]) -> None:
        status = await backend.delete(keys)
        ok, absent = PageStatus.OK, PageStatus.ABSENT
        assert status.tolist() == [ok if key in model.pages else absent for key in keys]
        for key in keys:
            model.forget(key)

    async def step_stat(self, backend: Backend, model: Model, keys: list[bytes]) -> None:
        stats = await backend.stat(keys)
        held = [len(model.pages[key]) if key in model.pages else -1 for key in keys]
        assert stats.pages.tolist() == held
        assert stats.versions.tolist() == [model.versions.get(key, 0) for key in keys]

    async def step_read(self, backend: Backend, model: Model, step: Read) -> None:
        wanted = model.earlier if step.stale else model.versions
        versions = {key: wanted.get(key, 1) for key, _, _ in step.extents}
        extents = [
            (key, first, count, number * _PAGES_MAX)
            for number, (key, first, count) in enumerate(step.extents)
        ]
        out = np.zeros((len(extents) * _PAGES_MAX, self.page_bytes), np.uint8)
        status = await backend.read(make_extents(versions, extents), out)
        check_status(status, len(extents))
        for (key, first, count, row), one in zip(extents, status.tolist(), strict=True):
            if versions[key] != model.versions.get(key) or first + count > len(model.pages[key]):
                assert one == PageStatus.ABSENT
            else:
                assert one == PageStatus.OK
                expected = model.pages[key][first : first + count]
                np.testing.assert_array_equal(out[row : row + count], expected)

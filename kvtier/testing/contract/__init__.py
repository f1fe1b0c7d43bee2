"""The contract of :class:`kvtier.backend.Backend`, as tests that any backend can run.

A test module of a backend subclasses :class:`BackendContract`::

    class TestMyBackend(BackendContract):
        @pytest_asyncio.fixture
        async def backend(self, tmp_path):
            backend = await MyBackend.open({"root": tmp_path}, self.page_bytes)
            yield backend
            await backend.close()

What a backend says it can do (:class:`kvtier.backend.Capability`) decides what is tested.
"""

from kvtier.testing.contract.base import ContractBase
from kvtier.testing.contract.concurrency import ConcurrencyContract
from kvtier.testing.contract.lifecycle import LifecycleContract
from kvtier.testing.contract.limits import LimitsContract
from kvtier.testing.contract.naming import NamingContract
from kvtier.testing.contract.reading import ReadingContract
from kvtier.testing.contract.sequences import SequencesContract
from kvtier.testing.contract.writing import WritingContract

__all__ = ["BackendContract", "ContractBase"]


class BackendContract(
    SequencesContract,
    LifecycleContract,
    ConcurrencyContract,
    LimitsContract,
    NamingContract,
    WritingContract,
    ReadingContract,
):
    """Everything that is asked of a backend; see the module for how to use it.

    pytest runs the tests of the last base first: what goes wrong is met in its simplest form.
    """

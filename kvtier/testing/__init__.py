"""What a backend proves itself with; needs pytest, pytest-asyncio and hypothesis.

Subclass :class:`kvtier.testing.contract.BackendContract` in a test module of your own, give it a
fixture ``backend``, and pytest runs the whole contract against it.
"""

import sys

# Failed assertions then show their values, as those of a test module do.
if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite(f"{__name__}.batches", f"{__name__}.contract")

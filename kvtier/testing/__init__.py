"""What a backend proves itself with; needs the extra ``test``.

Subclass :class:`kvtier.testing.contract.BackendContract` in a test module of your own, give it a
fixture ``backend``, and pytest runs the whole contract against it.
"""

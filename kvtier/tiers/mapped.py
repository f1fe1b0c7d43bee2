"""Host memory that a GPU reads where it is."""

from __future__ import annotations

import contextlib

from kvtier.errors import DeviceError
from kvtier.gpu import DeviceRows, Gpu, Stream, device_calls
from kvtier.pages import I64, U8
from kvtier.tiers.cuda_rows import SOURCE, RowKernels
from kvtier.tiers.stream_order import StreamOrder
from kvtier.units import format_bytes


class MappedRows:
    """Rows of host memory, pinned: kernels read them over the bus, the host alone writes them.

    Args:
        gpu: reads them.
        rows: of :func:`kvtier.rows.aligned_rows`.

    Attributes:
        view: the rows as an array for kernels.

    Raises:
        DeviceError: the memory cannot be pinned.
    """

    def __init__(self, gpu: Gpu, rows: U8) -> None:
        self._gpu = gpu
        self._order = StreamOrder()
        try:
            self._kernels = RowKernels(gpu.kernels(SOURCE, {}))
            self._pinned = gpu.pin(rows)
        except gpu.errors as error:
            raise DeviceError(
                f"a dram tier of {format_bytes(rows.nbytes)} cannot be pinned for the GPU: "
                f"{error}; lower its capacity"
            ) from error
        self.view = self._pinned.view

    def gather(self, out: DeviceRows, out_rows: I64 | None, rows: I64) -> None:
        """Enqueue a copy of ``rows`` (i64[n]) to rows of ``out``, in one launch on its stream.

        Raises:
            DeviceLostError: the GPU failed.
        """
        with device_calls(self._gpu), self._gpu.on(out.stream):
            self._kernels.copy(out.array, out_rows, self.view, rows, len(rows))
            self._order.after_read(out.stream)

    def was_read(self, stream: Stream) -> None:
        """Something that reads the rows has been enqueued."""
        self._order.after_read(stream)

    def before_write(self) -> None:
        """Wait until no kernel reads the rows: the host's copy knows nothing of streams."""
        # A GPU that has failed reads nothing any more; its own tier says so.
        with contextlib.suppress(*self._gpu.errors):
            self._order.wait_for_reads()

    def close(self) -> None:
        """Let the memory be paged again; a second call does nothing."""
        self.before_write()
        with contextlib.suppress(*self._gpu.errors):
            self._pinned.close()

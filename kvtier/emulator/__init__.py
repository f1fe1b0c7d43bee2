"""The path in virtual time: the chain's own decisions, with modelled devices under them."""

from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.driver import VirtualDriver
from kvtier.emulator.flash import FlashQueues
from kvtier.emulator.loop import VirtualLoop
from kvtier.emulator.opening import Emulator, open_emulator, open_emulators, open_repetition
from kvtier.emulator.origin import ModelledOrigin
from kvtier.emulator.repeating import RepeatingDriver
from kvtier.emulator.station import ReadLoad
from kvtier.emulator.timeline import Timeline
from kvtier.ssd import STORAGE_NEXT_SLC, SsdModel

__all__ = [
    "STORAGE_NEXT_SLC",
    "Emulator",
    "FlashQueues",
    "ModelledDevice",
    "ModelledOrigin",
    "ReadLoad",
    "RepeatingDriver",
    "SsdModel",
    "Timeline",
    "VirtualDriver",
    "VirtualLoop",
    "open_emulator",
    "open_emulators",
    "open_repetition",
]

"""The path in virtual time: the chain's own decisions, with modelled devices under them."""

from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.driver import VirtualDriver
from kvtier.emulator.opening import open_emulator
from kvtier.emulator.origin import ModelledOrigin

__all__ = ["ModelledDevice", "ModelledOrigin", "VirtualDriver", "open_emulator"]

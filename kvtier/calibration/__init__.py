"""Calibration: a real device measured, and the model that repeats it in virtual time."""

from kvtier.calibration.calibrating import Calibration, calibrate
from kvtier.calibration.load import Load, Operations
from kvtier.calibration.prediction import closed_loop, predict
from kvtier.calibration.writing import to_mapping, to_text, to_toml

__all__ = [
    "Calibration",
    "Load",
    "Operations",
    "calibrate",
    "closed_loop",
    "predict",
    "to_mapping",
    "to_text",
    "to_toml",
]

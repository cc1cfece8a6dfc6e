"""The stored rule that turns presence logits into a probability and a decision; fitted by medplib.evaluation.presence."""

from medplib.evaluation.presence import PresenceCalibration

__all__ = ["PresenceCalibration"]

"""Targets: what a masked method predicts, chosen by config and handed to the method."""

from ssl_zoo.targets.averaged_teacher import AveragedTeacher, AveragedTeacherConfig
from ssl_zoo.targets.base import TARGETS, Ema, Target, TargetConfig
from ssl_zoo.targets.pixels import Pixels, PixelsConfig
from ssl_zoo.targets.teacher import MaskTeacher, Normalization, Teacher, TeacherConfig

__all__ = [
    "TARGETS",
    "AveragedTeacher",
    "AveragedTeacherConfig",
    "Ema",
    "MaskTeacher",
    "Normalization",
    "Pixels",
    "PixelsConfig",
    "Target",
    "TargetConfig",
    "Teacher",
    "TeacherConfig",
]

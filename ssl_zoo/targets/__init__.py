"""Targets: what a masked method predicts, chosen by config and handed to the method."""

from ssl_zoo.targets.base import TARGETS, Target, TargetConfig
from ssl_zoo.targets.features import FeatureTarget, MaskTeacher, Normalization
from ssl_zoo.targets.online import Online, OnlineConfig
from ssl_zoo.targets.pixels import Pixels, PixelsConfig
from ssl_zoo.targets.teacher import Teacher, TeacherConfig
from ssl_zoo.targets.tokens import Tokenizer, Tokens, TokensConfig
from ssl_zoo.targets.topk_teacher import TopKTeacher, TopKTeacherConfig

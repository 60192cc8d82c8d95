"""The Python interface: ``ssl_zoo.load``, ``ssl_zoo.train`` and ``ssl_zoo.evaluate``, which the tools use too."""

from ssl_zoo.api.encoder import Encoder
from ssl_zoo.api.evaluation import evaluate
from ssl_zoo.api.loading import load
from ssl_zoo.api.training import Run, train
from ssl_zoo.api.transform import Transform

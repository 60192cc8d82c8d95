"""Jobs of a real Slurm with two nodes on this machine: every way to end, compared with undisturbed runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import NODES, SlurmCluster, why_not
from tiny_commands import DEMO, ROOT, TINY, children_of, records

from ssl_zoo.engine.checkpoint.state import list_checkpoints, step_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"no Slurm here: {why_not()}"),
]

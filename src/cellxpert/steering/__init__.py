"""Metropolis–Hastings over the bins of movable features: stated targets, exact kernels, many chains side by side.

Knows no network and no AnnData: a model is anything that answers :class:`~cellxpert.steering.conditionals.Conditionals`.
"""

from cellxpert.steering.anchors import Anchors, medoids
from cellxpert.steering.chains import Schedule, Trace, run
from cellxpert.steering.conditionals import Conditionals, Packed
from cellxpert.steering.kernels import (
    BlockMH,
    Info,
    Informed,
    Kernel,
    MultipleTry,
    State,
    SuffixRedraw,
    TiltedGibbs,
    ancestral,
    init,
)
from cellxpert.steering.streams import Streams
from cellxpert.steering.targets import Target

__all__ = [
    "Anchors",
    "BlockMH",
    "Conditionals",
    "Info",
    "Informed",
    "Kernel",
    "MultipleTry",
    "Packed",
    "Schedule",
    "State",
    "Streams",
    "SuffixRedraw",
    "Target",
    "TiltedGibbs",
    "Trace",
    "ancestral",
    "init",
    "medoids",
    "run",
]

"""scalescope: a bit-accurate simulator of the INT8 datapath of Mamba language models.

>>> import scalescope
>>> model = scalescope.load("sample")
>>> trace = model.run("It was a dark night", mode="2-1")
>>> trace["layer_00/conv_out"].dtype, trace["layer_00/conv_out"].shape
(dtype('int8'), (1, 5, 384))
"""

from ._scalescope import Error, Panic, __version__
from .commands import (
    attribute,
    calibrate,
    check,
    compare,
    equiv,
    evaluate,
    faults,
    headroom,
    info,
    lineage,
    propagate,
    quantize,
    recommend,
    suggest_map,
    sweep,
)
from .model import Decoder, Model, load
from .results import Result
from .rules import Mode, Profile, modes, profiles
from .trace import Trace, points
from . import ops  # noqa: E402

__all__ = [
    "Decoder",
    "Error",
    "Mode",
    "Model",
    "Panic",
    "Profile",
    "Result",
    "Trace",
    "__version__",
    "attribute",
    "calibrate",
    "check",
    "compare",
    "equiv",
    "evaluate",
    "faults",
    "headroom",
    "info",
    "lineage",
    "load",
    "modes",
    "ops",
    "points",
    "profiles",
    "propagate",
    "quantize",
    "recommend",
    "suggest_map",
    "sweep",
]

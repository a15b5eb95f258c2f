"""The five transformers of the paper, and a tiny one, behind one interface: `build_model("BEATs")`."""

from framekd.models.build import ENCODERS, WithoutDraws, build_from_spec, build_model, switches
from framekd.models.encoder import Encoder, ReferenceLayout
from framekd.models.frame import FrameModel, attention_pool, init_linear
from framekd.models.mel import FrontEnd

__all__ = [
    "ENCODERS",
    "Encoder",
    "FrameModel",
    "FrontEnd",
    "ReferenceLayout",
    "WithoutDraws",
    "attention_pool",
    "build_from_spec",
    "build_model",
    "init_linear",
    "switches",
]

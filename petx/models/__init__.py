"""Host models that transformers lacks: BART and T5 that read visual features, InstructBLIP with several instructions.

Also the sizes of the papers' full-size models, built without memory for their weights.
"""

from petx.models.blip2_retrieval import Blip2Retrieval
from petx.models.instruct_blip import (
    FeatureInstructBlip,
    FeatureInstructBlipConfig,
    FeatureVision,
    InstructBlip,
    feature_config,
)
from petx.models.instruct_blip_sizes import INSTRUCT_BLIPS, build_instruct_blip
from petx.models.instructions import aggregate_instructions
from petx.models.temperature import Temperature
from petx.models.visual_embedding import VisualEmbedding, join_masks
from petx.models.vl_bart import VLBartConfig, VLBartForConditionalGeneration
from petx.models.vl_sizes import BACKBONES, FEATURES, build_skeleton
from petx.models.vl_t5 import VLT5Config, VLT5ForConditionalGeneration

__all__ = [
    "BACKBONES",
    "Blip2Retrieval",
    "FEATURES",
    "FeatureInstructBlip",
    "FeatureInstructBlipConfig",
    "FeatureVision",
    "INSTRUCT_BLIPS",
    "InstructBlip",
    "Temperature",
    "VLBartConfig",
    "VLBartForConditionalGeneration",
    "VLT5Config",
    "VLT5ForConditionalGeneration",
    "VisualEmbedding",
    "aggregate_instructions",
    "build_instruct_blip",
    "build_skeleton",
    "feature_config",
    "join_masks",
]

"""T5 that reads visual features: VL-PET's second host."""

from petx.hosts._visual_encoder_decoder import VisualEncoderDecoder
from petx.models import VLT5ForConditionalGeneration


class VLT5(VisualEncoderDecoder):
    """T5 with a visual embedding."""

    model_types = ("t5", "vl_t5")
    words, order = "T5", 1
    model_class = VLT5ForConditionalGeneration
    has_biases = False
    extra_ids = False  # they are in its vocabulary

    @classmethod
    def dropouts(cls, rate: float) -> dict[str, float]:
        return dict(dropout_rate=rate)


HOST = VLT5

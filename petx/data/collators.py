"""Which collator a model's batches are made by."""

from petx.data.instructions import InstructCollator
from petx.data.tasks import Collator


def collator_for(model, tokenizer):
    """The collator for ``model``, by its configuration: an InstructBLIP's, or an encoder-decoder's."""
    config = model.config
    if "instructblip" in config.model_type:
        return InstructCollator(config, tokenizer)
    return Collator(tokenizer.pad_token_id, config.decoder_start_token_id)

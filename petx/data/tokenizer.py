"""A word-level tokenizer made from the texts of a data set: enough for a host of a few dozen words."""

import re

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_PIECE = r"\w+|[^\w\s]"


def words(text):
    """Lower-case words and single punctuation marks of ``text``."""
    return re.findall(_PIECE, text.lower())


def unknown_words(question, tokenizer):
    """Words of ``question`` that are not in a word-level ``tokenizer``'s vocabulary."""
    return [word for word in words(question) if tokenizer.convert_tokens_to_ids(word) == tokenizer.unk_token_id]


def word_tokenizer(texts, visual_tokens):
    """A ``PreTrainedTokenizerFast`` over the words of ``texts``, ``</s>`` after every text.

    The last ``visual_tokens`` rows of the vocabulary are kept for the visual embedding, which takes its object-order
    vectors from there, counting from the end.
    """
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    known = sorted({word for text in texts for word in words(text)})
    visual = [f"<vis_extra_id_{i}>" for i in reversed(range(visual_tokens))]
    vocabulary = {token: i for i, token in enumerate(special + known + visual)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)

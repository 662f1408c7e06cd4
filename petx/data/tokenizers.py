"""A word-level tokenizer made from the texts of a data set, and the two tokenizers of a host with a Q-Former."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

QFORMER_TOKENIZER = "qformer_tokenizer"  # subfolder, as InstructBLIP's processor keeps it
_PIECE = r"\w+|[^\w\s]"


def words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks of ``text``."""
    return re.findall(_PIECE, text.lower())


def unknown_words(question: str, tokenizer: Any) -> list[str]:
    """Words of ``question`` that are not in a word-level ``tokenizer``'s vocabulary."""
    return [word for word in words(question) if tokenizer.convert_tokens_to_ids(word) == tokenizer.unk_token_id]


def word_tokenizer(texts: list[str], visual_tokens: int) -> PreTrainedTokenizerFast:
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


@dataclasses.dataclass
class Tokenizers:
    """The language model's tokenizer and the Q-Former's, and the host's image processor if it reads pixels."""

    text: Any
    qformer: Any
    image_processor: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "text" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.text, name)  # pad_token_id, batch_decode and the like are the language model's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.text(*args, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        self.text.save_pretrained(folder)
        self.qformer.save_pretrained(Path(folder, QFORMER_TOKENIZER))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizers":
        return cls(
            AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder, subfolder=QFORMER_TOKENIZER)
        )

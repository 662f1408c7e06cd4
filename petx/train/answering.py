"""One question on one image: the answer of a tuned model with its probability, and a picture of all three."""

import dataclasses

import matplotlib
import torch
from PIL import Image

from petx.data.cache import written_whole
from petx.data.tokenizer import words
from petx.errors import UserError
from petx.train import data

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str
    probability: float  # of the whole answer, its end included
    unknown: list  # words of the question that are not in the model's vocabulary


@torch.inference_mode()
def answer(loaded, image, question, num_beams=1):
    """:class:`Answer` of ``loaded`` (:class:`petx.train.tuned.Tuned`) to ``question`` on the file ``image``."""
    if loaded.settings.data != "easy-vqa":
        raise UserError("petx predict encodes images by EfficientNet-Lite0, which this model was not trained with")
    model, tokenizer = loaded.model, loaded.tokenizer
    features, boxes = data.encode_image(image, loaded.settings)
    inputs = dict(tokenizer(data.PROMPTS["vqa"] + question, return_tensors="pt"), visual_features=features, boxes=boxes)
    inputs.pop("token_type_ids", None)
    tokens = model.generate(**inputs, num_beams=num_beams, max_new_tokens=data.MAX_ANSWER)
    logits = model(**inputs, decoder_input_ids=tokens[:, :-1]).logits[0].float()
    probability = logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).sum().exp().item()
    unknown = [word for word in words(question) if tokenizer.convert_tokens_to_ids(word) == tokenizer.unk_token_id]
    return Answer(tokenizer.decode(tokens[0], skip_special_tokens=True).strip(), probability, unknown)


def draw(image, question, answer, path):
    """PNG at ``path``: the image with the question above and the answer below it."""
    with Image.open(image) as picture:
        figure, axes = plt.subplots(figsize=(4, 4.6), layout="constrained")
        axes.imshow(picture.convert("RGB"), interpolation="nearest" if min(picture.size) < 200 else "antialiased")
    axes.set_title(question, fontsize=11, wrap=True)
    axes.set_xlabel(f"{answer.text}  (p = {answer.probability:.2f})", fontsize=13, fontweight="bold")
    axes.set_xticks([])
    axes.set_yticks([])
    with written_whole(path) as target:
        figure.savefig(target, dpi=150, format="png")
    plt.close(figure)

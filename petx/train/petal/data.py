"""What PETAL's recipe trains and scores on: easy-VQA, or image files with questions or captions of one's own."""

import dataclasses
import random
from pathlib import Path

from tokenizers import AddedToken

from petx import hosts
from petx.data import easy_vqa, image_text, packages, smollm2
from petx.data.instructions import ImageFiles, InstructTask, Tokenizers
from petx.data.tasks import Example
from petx.data.tokenizer import unknown_words, word_tokenizer, words
from petx.errors import UserError
from petx.train.data import MAX_ANSWER, RunData, check_easy_vqa, check_own_data, encode_image, load_easy_vqa

TASKS = ("vqa", "gqa", "caption")  # of image_text; NLVR2 has two images
METRICS = ("exact", "vqa", "matches", "caption")
IMAGE_TOKEN = smollm2.IMAGE_TOKEN
DESCRIBE, SAY = "describe the image", "say"  # instructions of the pretraining


def check_data(settings):
    """Raise :class:`UserError` if something the run will read is missing or too small, before any work."""
    if settings.data == "easy-vqa":
        check_easy_vqa(settings)
    else:
        check_own_data(settings, TASKS, hosts.wanted("petal"))
        for task, metric in settings.metrics.items():
            if metric not in METRICS:
                raise UserError(f"metrics.{task} must be one of {', '.join(METRICS)}; got {metric!r}")


def load(settings, host):
    """The :class:`RunData` that ``settings`` ask for; :class:`UserError` for what is missing or does not fit."""
    return easy_vqa_data(settings, host) if settings.data == "easy-vqa" else own_data(settings, host)


def easy_vqa_data(settings, host):
    """easy-VQA: the whole of VQA as the task to tune on; captions, "what" questions and words to pretrain a host with.

    A host that reads pixels gets the image files, any other their features.
    """
    source = load_easy_vqa(settings)
    tokenizers = _own_tokenizers(source, settings) if settings.host is None else host.tokenizers(settings.host)
    features = source.features
    if tokenizers.image_processor is not None:
        features = ImageFiles(packages.require("easy-vqa")["easy_vqa"] / "data", tokenizers.image_processor)

    def task(name, examples, templates, max_target=MAX_ANSWER):
        options = dict(max_target=max_target, metric="exact")
        return _task(settings, name, examples, features, tokenizers, templates, **options)

    evaluated = settings.eval_instructions or settings.instructions
    templates = {"train": settings.instructions, "dev": evaluated, "test": evaluated}
    vqa = {split: task("vqa", source.questions(split), templates[split]) for split in templates}
    data = RunData(
        tokenizers,
        **{split: [vqa[split]] for split in vqa},
        baselines=source.baselines({split: vqa[split] for split in ("dev", "test")}),
    )
    if settings.host is None:
        what = source.questions("train", only_what=True)
        data.pretraining = [
            task("caption", source.captions(DESCRIBE), ["{q}"], max_target=6),
            task("what", what, settings.instructions[:1]),
            task("words", _words(source), ["{q}"], max_target=6),
        ]
        images = [source.features.rows[image] for image in easy_vqa.images_of(source.train)]
        rows = source.features.features[images].flatten(0, 1)
        data.feature_stats = rows.mean(0), rows.std(0)
    return data


def _words(source):
    """Examples that repeat one to three words of the training text, an image beside them that does not matter.

    They give the language model an output for every word, those of yes/no questions too, as any pretrained one has.
    """
    draw = random.Random(0)
    vocabulary = sorted({word for text in source.texts() for word in words(text)})
    images = easy_vqa.images_of(source.train)
    said = [(image, " ".join(draw.choices(vocabulary, k=draw.randint(1, 3)))) for image in images]
    return [Example(f"{SAY} {text}", (image,), ((text, 1.0),)) for image, text in said]


def _own_tokenizers(source, settings):
    texts = [DESCRIBE, SAY, *settings.instructions, *settings.eval_instructions, *source.texts()]
    qformer = word_tokenizer(texts, visual_tokens=0)
    qformer.add_tokens([AddedToken(IMAGE_TOKEN, special=True)], special_tokens=True)
    return Tokenizers(smollm2.tokenizer() if settings.language_model == "smollm2" else qformer, qformer)


def own_data(settings, host):
    """The tasks under ``data_dir`` with image files, for a pretrained host: :mod:`petx.data.image_text`."""
    tokenizers = host.tokenizers(settings.host)
    if tokenizers.image_processor is None:
        raise UserError(
            f"host: {settings.host} was trained on features; data {settings.data} needs one that reads images"
        )
    folder = Path(settings.images_dir or Path(settings.data_dir, "images"))

    def tasks(split):
        training = split == "train"
        images = ImageFiles(folder, tokenizers.image_processor, settings.augment if training else "none")
        made = []
        for name in settings.tasks:
            options = {
                key: image_text.OPTIONS[name][key]
                for key in ("max_target", "metric", "loss")
                if key in image_text.OPTIONS[name]
            }
            options["max_target"] = settings.max_target.get(name, options["max_target"])
            options["metric"] = settings.metrics.get(name, options["metric"])
            examples = image_text.read_examples(name, settings.data_dir, settings.splits[name][split], training)
            if settings.targets == "first" if training else options["metric"] == "exact":
                examples = [_first_answer(example) for example in examples]
            images.check(dict.fromkeys(image for example in examples for image in example.images))
            templates = settings.task_instructions.get(name, settings.instructions)
            if not training and settings.eval_instructions:
                templates = settings.eval_instructions
            made.append(_task(settings, name, examples, images, tokenizers, templates, **options))
        return made

    return RunData(tokenizers, train=tasks("train"), dev=tasks("dev"), test=tasks("test"))


def _first_answer(example):
    """``example`` with the first of its answers alone: the first annotator's where they are given."""
    first = example.references[0] if example.references else example.answers[0][0]
    return dataclasses.replace(example, answers=((first, 1.0 if first else example.answers[0][1]),))


def _task(settings, name, examples, features, tokenizers, templates, **options):
    return InstructTask(
        name,
        examples,
        features,
        tokenizers,
        templates=templates,
        clean=settings.clean_instructions,
        max_text=settings.max_text,
        generation=settings.generation,
        **options,
    )


def question_item(loaded, image, question):
    """One question on an image file, as :class:`petx.data.instructions.InstructTask` gives them."""
    settings, tokenizers = loaded.settings, loaded.tokenizer
    unknown = []
    if tokenizers.image_processor is not None:
        pixels, _ = ImageFiles(".", tokenizers.image_processor).read(Path(image))
    else:
        pixels = encode_image(image, settings)[0][0]
        unknown = unknown_words(question, tokenizers.qformer)
    templates = settings.eval_instructions or settings.instructions
    task = _task(settings, "vqa", [], None, tokenizers, templates, max_target=MAX_ANSWER, metric="exact")
    limit = settings.generation.get("max_new_tokens", max([MAX_ANSWER, *settings.max_target.values()]))
    return task.item(pixels, question) | {"max_target": limit, "unknown": unknown}

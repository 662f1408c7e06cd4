"""Data of one's own: tasks in their published files below ``data_dir``, for a pretrained host."""

import dataclasses
from pathlib import Path
from typing import Any

from petx import metrics, tasks
from petx.data.examples import Example, drawn
from petx.errors import UserError
from petx.files import require_readable
from petx.tasks.base import RunData, Source, TaskSpec


class OwnData(Source):
    """The tasks of one kind of data, for the host that ``--host`` names."""

    settings = ("visual_tokens", "max_target")

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def check(self, settings: Any) -> None:
        from petx import hosts

        self.check_folder(settings)
        if settings.host is None:
            wanted = hosts.wanted(settings.recipe)
            raise UserError(f"host must name a pretrained {wanted} (folder or hub name), got None")
        known = self.specs(settings)
        if not settings.tasks:
            raise UserError(f"tasks must name at least one of {', '.join(known)}; got none")
        for name in settings.tasks:
            if name not in known:
                raise UserError(
                    f"unknown task {name!r} of {settings.data}; there are: {', '.join(known)}{_why_not(name)}"
                )
            spec = known[name]
            metric = getattr(settings, "metrics", {}).get(name, spec.metric)
            if metrics.reads_rankings(metric) != spec.retrieval:
                kind = "rankings" if spec.retrieval else "texts"
                raise UserError(f"metrics.{name} must be a metric of {kind}, got {metric!r}")
            for split in ("train", "dev", "test"):
                given = settings.splits.get(name, {}).get(split)
                if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
                    raise UserError(f"splits.{name}.{split} must be a list of split names, got {given!r}")

    def check_folder(self, settings: Any) -> None:
        """Raise :class:`UserError` unless ``settings.data_dir`` is a folder."""
        if settings.data_dir is None or not Path(settings.data_dir).is_dir():
            raise UserError(f"data_dir must be the folder of the data, got {settings.data_dir!r}")
        require_readable(settings.data_dir, "data_dir")

    def specs(self, settings: Any) -> dict[str, TaskSpec]:
        return tasks.of_kind(self.kind, settings.recipe)

    def store(self, host: Any, spec: TaskSpec, settings: Any, tokenizer: Any, split: str) -> Any:
        """What reads the features or pixels of ``spec``."""
        return host.store(spec, settings, tokenizer, split)

    def examples(self, settings: Any, task: str, split: str) -> tuple[TaskSpec, list[Example]]:
        spec = self.specs(settings)[task]
        metric = getattr(settings, "metrics", {}).get(task, spec.metric)
        spec = dataclasses.replace(spec, metric=metric)
        return spec, _checked(spec, settings.data_dir or ".", settings.splits[task][split], training=False)

    def load(self, settings: Any, host: Any) -> RunData:
        tokenizer = host.pretrained_tokenizers(settings)
        known = self.specs(settings)

        def loaded(split: str) -> list:
            made = []
            for name in settings.tasks:
                spec = host.adapted(known[name], settings)
                store = self.store(host, spec, settings, tokenizer, split)
                chosen = settings.splits[name][split]
                folder, training = settings.data_dir or ".", split == "train"
                examples = _checked(spec, folder, chosen, training=training, tokenizer=tokenizer)
                if training:
                    examples = drawn(examples, settings.few_shot, settings.seed, name)
                store.check(dict.fromkeys(image for example in examples for image in example.images))
                made.append(host.dataset(spec, examples, store, tokenizer, settings, split))
            return made

        return RunData(tokenizer, train=loaded("train"), dev=loaded("dev"), test=loaded("test"))


def _checked(spec: TaskSpec, folder: str, splits: list[str], *, training: bool, tokenizer: Any = None) -> list[Example]:
    """The examples of ``splits``; UserError unless they can be trained on, or scored and written."""
    examples = spec.examples(folder, splits, training, tokenizer)
    if training:
        return examples
    spec.predictions.check(spec.name, examples)
    known = [example.answered for example in examples]
    if any(known) and not all(known):
        bare = known.index(False)
        raise UserError(
            f"task {spec.name}: example {bare} of {', '.join(splits)} has no answer, and others have; score the splits "
            "whose answers are known by themselves"
        )
    if any(known) and metrics.reads_references(spec.metric):
        missing = next((i for i, example in enumerate(examples) if not example.references), None)
        if missing is not None:
            raise UserError(
                f"metric {spec.metric} of task {spec.name} compares with annotators' answers, and example "
                f"{missing} of {', '.join(splits)} has none"
            )
    return examples


def _why_not(name: str) -> str:
    """Why a task of another method is not for this one, in words."""
    try:
        spec = tasks.find(name)
    except UserError:
        return ""
    return f" ({name} is for {', '.join(spec.methods)} alone: {spec.only})" if spec.only else ""

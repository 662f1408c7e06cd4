"""Data of one's own: tasks in their published files below ``data_dir``, for a pretrained host."""

from pathlib import Path
from typing import Any

from petx import metrics, tasks
from petx.errors import UserError
from petx.tasks.base import RunData, Source


class OwnData(Source):
    """The tasks of one kind of data; ``wanted_host``: words for what ``--host`` must name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def check(self, settings: Any) -> None:
        from petx import hosts

        if settings.data_dir is None or not Path(settings.data_dir).is_dir():
            raise UserError(f"data_dir must be the folder of the data, got {settings.data_dir!r}")
        if settings.host is None:
            wanted = hosts.wanted(settings.recipe)
            raise UserError(f"host must name a pretrained {wanted} (folder or hub name), got None")
        known = tasks.of_kind(self.kind, settings.recipe)
        if not settings.tasks:
            raise UserError(f"tasks must name at least one of {', '.join(known)}; got none")
        for name in settings.tasks:
            if name not in known:
                raise UserError(f"unknown task {name!r} of {settings.data}; there are: {', '.join(known)}")
            for split in ("train", "dev", "test"):
                given = settings.splits.get(name, {}).get(split)
                if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
                    raise UserError(f"splits.{name}.{split} must be a list of split names, got {given!r}")

    def load(self, settings: Any, host: Any) -> RunData:
        tokenizer = host.pretrained_tokenizers(settings)
        known = tasks.of_kind(self.kind, settings.recipe)

        def loaded(split: str) -> list:
            made = []
            for name in settings.tasks:
                spec = host.adapted(known[name], settings)
                store = host.store(spec, settings, tokenizer, split)
                chosen = settings.splits[name][split]
                examples = spec.examples(settings.data_dir, chosen, split == "train", tokenizer)
                if split != "train" and metrics.reads_references(spec.metric):
                    bare = next((i for i, example in enumerate(examples) if not example.references), None)
                    if bare is not None:
                        raise UserError(
                            f"metric {spec.metric} of task {name} compares with annotators' answers, and example "
                            f"{bare} of {', '.join(chosen)} has none"
                        )
                store.check(dict.fromkeys(image for example in examples for image in example.images))
                made.append(host.dataset(spec, examples, store, tokenizer, settings, split))
            return made

        return RunData(tokenizer, train=loaded("train"), dev=loaded("dev"), test=loaded("test"))

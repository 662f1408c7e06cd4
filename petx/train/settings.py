"""Settings of a recipe: defaults, then a preset, a file, ``--set`` and flags, each over the last."""

import argparse
import dataclasses
import difflib
import sys
import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from petx import _yaml, baselines, tasks
from petx.errors import UserError
from petx.files import user_path
from petx.options import BEAMS, checked_value, option
from petx.train import settings_help, trainer_flags

PRESETS = Path(__file__).parents[1] / "recipes"  # one folder per recipe
MOST_SEED = 2**32 - 1  # numpy's bound
KEPT = ("last", "best")
FILES = (".yaml", ".yml")
PLAIN = ("output_dir", "resume")  # flags whose value is not read as YAML
Values = dict[str, Any]  # settings by name


@dataclasses.dataclass
class Common:
    """What every recipe's settings have. Lists and mappings are written as YAML, on the command line too.

    A recipe's own dataclass inherits this, adds its fields, and sets the class attributes below.
    """

    recipe: typing.ClassVar[str]  # its name: petx train NAME
    default_preset: typing.ClassVar[str] = "easy-vqa"
    by_task: typing.ClassVar[tuple] = ("splits", "batch_sizes")  # mappings whose keys are tasks of ``data``
    after_host: typing.ClassVar[tuple] = (  # on these, and baselines', the small host's pretraining does not depend
        *("few_shot", "tasks", "arms", "with_arms", "steps", "epochs", "batch_size", "batch_sizes", "num_beams", "lr"),
        *("matching", "rerank", "keep", "seeds", "output_dir", "resume"),
    )

    of_own_data: typing.ClassVar[tuple] = ("data_dir", "splits")  # what data in packages leave unread
    of_texts: typing.ClassVar[tuple] = ("num_beams",)  # what a run leaves unread that only ranks
    of_retrieval: typing.ClassVar[tuple] = ("retrieval_width", "matching", "rerank")  # and one that ranks nothing

    dry_run = False  # asked for on the command line alone: nothing that a run depends on
    given: typing.ClassVar[frozenset[str]] = frozenset()  # names that the user wrote, and not a preset

    if typing.TYPE_CHECKING:  # what every recipe adds, with its own default
        data: str
        host: str | None
        arms: list
        lr: float
        warmup: float
        decay: str

    # data
    data_dir: str | None = option(None, "folder of one's own data (docs/training.md has the layout)", path=True)
    feature_width: int = option(1280, "width of a visual feature vector", least=1)
    image_size: int = option(64, "data in packages: side in pixels the images are read at, a multiple of 32", least=32)
    train_images: int | None = option(
        None, "data in packages: use only this many training images (default: all)", least=1
    )
    dev_images: int = option(400, "data in packages: images held out for development", least=1)
    test_images: int | None = option(
        None,
        "data in packages: use only this many test images (default: all; openmoji: 600)",
        least=1,
    )
    tasks: list = option(
        [], "tasks to train on, by name; easy-vqa: parts of it, all of it by default", each=dict(kind=str)
    )
    few_shot: int | None = option(None, "train on so many examples of each task, drawn by seed (default: all)", least=1)
    datasets: dict = option(
        {}, "data datasets: {task: {path: ..., question: column, answers: column, image: column}}", each=dict(kind=dict)
    )
    splits: dict = option({}, "own data: {task: {train: [...], dev: [...], test: [...]}}", each=dict(kind=dict))

    # pretraining of a small host
    host_steps: int = option(1200, "small host: pretraining steps", least=1)
    host_batch_size: int = option(64, "small host: examples per pretraining step", least=1)
    host_lr: float = option(1e-3, "small host: peak learning rate of the pretraining", above=0)
    dropout: float = option(0.0, "dropout of the host's layers", least=0, below=1)

    # tuning
    with_arms: list = option([], "further arms on request", flag="with", each=dict(kind=str))
    steps: int | None = option(None, "tuning steps", least=1)
    epochs: int | None = option(None, "tuning epochs, instead of steps", least=1)
    batch_size: int = option(64, "examples per tuning step", least=1)
    batch_sizes: dict = option({}, "examples per step for each task, over batch_size", each=dict(kind=int, least=1))
    drop_last: bool = option(False, "an epoch leaves out what does not fill a task's last batch")
    clip: float = option(5.0, "gradient clipping norm; 0: off", least=0)
    weight_decay: float = option(0.01, "AdamW's weight decay", least=0)
    adam_epsilon: float = option(1e-6, "AdamW's epsilon", above=0)
    amp: str | None = option(None, "mixed precision on a GPU", choices=(None, "fp16", "bf16"))
    trainer: dict = option({}, "further fields of transformers' TrainingArguments; --trainer.KEY=VALUE sets one")

    # retrieval
    retrieval_width: int = option(256, "retrieval: width of the space that images and captions meet in", least=1)
    matching: float = option(
        1.0, "retrieval: weight of the matching loss beside the contrastive; 0: none, and no reranking", least=0
    )
    rerank: int = option(128, "retrieval: most similar candidates that matching ranks again; 0: none", least=0)

    # evaluation and run
    num_beams: int | None = option(None, "beams of the final evaluation (default: 1, captions 5)", **BEAMS)
    eval_batch_size: int = option(512, "examples per step of evaluation", least=1)
    keep: str = option(
        "last", "the state that is scored and saved: the last, or the best on the development split", choices=KEPT
    )
    eval_every: int = option(250, "steps between evaluations on the development split", least=1)
    save_every: int = option(250, "steps between checkpoints", least=1)
    workers: int = option(0, "processes that read the training data beside the one that trains", least=0, most=256)
    log_every: int = option(25, "steps between points of the loss curve", least=1)
    seed: int = option(0, "first seed", least=0, most=MOST_SEED)
    seeds: int = option(1, "how many seeds; the table then gives mean and standard deviation", least=1, most=10000)
    output_dir: str | None = option(None, "where everything is written (default: petx-runs/PRESET)", path=True)
    resume: bool = option(False, "go on with an interrupted run in OUTPUT_DIR")

    @classmethod
    def default_folder(cls, preset: str) -> str:
        """The default of ``output_dir``."""
        return f"petx-runs/{preset}"

    @classmethod
    def known_arms(cls) -> list[str]:
        """Names of the baselines that the recipe offers, in the order of its table."""
        return list(baselines.of_method(cls.recipe))

    def differing(self, names: Collection[str]) -> list[str]:
        """Those of ``names`` that are settings of this recipe and not at their default, as ``name=value``."""
        found = []
        for field in dataclasses.fields(self):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            value = getattr(self, field.name)
            if field.name in names and value != default:
                found.append(f"{field.name}={value!r}")
        return found

    @property
    def accumulated(self) -> int:
        """Batches in an optimizer step."""
        return self.trainer.get("gradient_accumulation_steps", 1)

    @property
    def all_arms(self) -> list[str]:
        """What is compared: ``arms`` and ``with_arms``, a group as those of its baselines that apply."""
        return list(dict.fromkeys([*self._meant(self.arms), *self._meant(self.with_arms)]))

    def _meant(self, arms: list[str]) -> Iterator[str]:
        offered = baselines.of_method(self.recipe)
        for arm in arms:
            group = [one for one in offered.values() if one.group == arm]
            yield from [one.name for one in group if one.applies(self)] if group else [arm]

    def check(self) -> None:
        """Raise :class:`UserError` if values do not fit together; a recipe adds its own checks to these."""
        self.trainer = trainer_flags.check(self.trainer)
        if self.amp and {"fp16", "bf16"} & self.trainer.keys():
            raise UserError(f"amp={self.amp} and trainer.fp16 or trainer.bf16 say the same thing; give one")
        if self.keep == "best" and self.trainer.get("eval_strategy") == "no":
            raise UserError("keep=best needs development scores, and trainer.eval_strategy=no leaves them out")
        for setting, arms in (("arms", self.arms), ("with", self.with_arms)):
            for arm in self._meant(arms):
                try:
                    baseline = baselines.find(arm, self.recipe)
                except UserError as error:
                    raise UserError(f"{setting}: {error}") from None
                baseline.check(self)
        if (self.steps is None) == (self.epochs is None):
            raise UserError(f"one of steps and epochs must be given, got steps={self.steps}, epochs={self.epochs}")
        if not self.all_arms:
            raise UserError(f"arms must name at least one of {', '.join(self.known_arms())}; got none")
        if self.seed + self.seeds - 1 > MOST_SEED:
            raise UserError(f"seed + seeds must be at most {MOST_SEED + 1}, got {self.seed} + {self.seeds}")
        if self.datasets and self.data != "datasets":
            raise UserError(f"datasets maps columns for data=datasets, got data={self.data}")
        known = tasks.names(self)
        for setting in self.by_task:
            for task in getattr(self, setting):
                if task not in known:
                    raise UserError(f"{setting}: unknown task {task!r} of {self.data}; there are: {', '.join(known)}")


def with_baselines(kind: Any) -> Any:
    """``kind`` with the settings that the baselines of its recipe bring along."""
    brought: dict[str, tuple[Any, Any]] = {}
    owned: dict[str, None] = {}
    for baseline in baselines.of_method(kind.recipe).values():
        brought |= baseline.options
        owned |= dict.fromkeys([*baseline.options, *baseline.own])
    known = {*brought, *(field.name for field in dataclasses.fields(kind))}  # an arm of both has settings of either
    fields = [(name, hint, field) for name, (hint, field) in brought.items()]
    namespace = {"__doc__": kind.__doc__, "__module__": kind.__module__}
    namespace["after_host"] = (*kind.after_host, *(name for name in owned if name in known))
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), namespace=namespace)


def parse(kind: Any, argv: list[str] | None = None, description: str | None = None) -> Any:
    """Settings of the dataclass ``kind`` from a command line; :class:`UserError` names what does not fit."""
    arguments = trainer_flags.as_settings(sys.argv[1:] if argv is None else argv)
    shown = settings_help.named_preset(arguments, kind.default_preset)
    set_there = read_preset(kind, shown) if settings_help.asks_for_help(arguments) else {}
    parser = argparse.ArgumentParser(
        prog=f"petx train {kind.recipe}",
        usage=f"petx train {kind.recipe} [--preset NAME] [--config FILE] [--set KEY=VALUE] [--SETTING VALUE ...] "
        "[--resume]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    names = f"one of {', '.join(presets(kind))} (default: {kind.default_preset}); below, {shown}'s own values"
    parser.add_argument("--preset", default=kind.default_preset, metavar="NAME", help=names)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, over the preset")
    parser.add_argument("--list", action=_List, kind=kind, help="show tasks, baselines, hosts and presets, and stop")
    more_help = "say what would be trained, how long and on what, with first examples, and stop"
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help=more_help)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; KEY.SUBKEY too")
    for field in dataclasses.fields(kind):
        flag = field.metadata.get("flag", field.name)
        spelled = dict.fromkeys((f"--{flag}", f"--{flag.replace('_', '-')}"))
        value = _checked_field(kind, field, set_there[field.name]) if field.name in set_there else None
        text = settings_help.described(field, shown, value)
        more: dict[str, Any] = dict(action="store_true") if field.name == "resume" else dict(metavar="VALUE")
        parser.add_argument(*spelled, dest=field.name, help=text.replace("%", "%%"), **more)
    given = vars(parser.parse_args(arguments))

    preset, config, assignments = given.pop("preset"), given.pop("config", None), given.pop("set")
    dry_run = given.pop("dry_run", False)
    values = read_preset(kind, preset)
    written: set[str] = set()
    if config is not None:
        path = user_path(config, "--config")
        values, written = laid_over(values, _extended(kind, path, ())), _written(kind, path)
    for assignment in assignments:
        layer = assigned(kind, values, assignment)
        values, written = laid_over(values, layer), written | layer.keys()
    fields = {field.name: field for field in dataclasses.fields(kind)}
    flags = {
        name: value if name in PLAIN else _from_text(kind, fields[name], value, f"--{name}")
        for name, value in given.items()
    }
    settings = checked(kind, laid_over(values, flags))
    if not settings.output_dir:
        settings = dataclasses.replace(settings, output_dir=kind.default_folder(preset))
    settings.dry_run, settings.given = dry_run, frozenset(written | flags.keys())
    return settings


class _List(argparse.Action):
    """Prints what there is to choose from, as ``--help`` prints the settings."""

    def __init__(self, option_strings: list[str], dest: str, *, kind: Any, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)
        self.kind = kind

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        from petx.train.listing import listing

        print(listing(self.kind))
        parser.exit()


def presets(kind: type[Common]) -> list[str]:
    """Names of the presets of a recipe; files that begin with an underscore are only there to be extended."""
    return sorted(path.stem for path in (PRESETS / kind.recipe).glob("[!_]*.yaml"))


def read_preset(kind: type[Common], name: str) -> dict[str, typing.Any]:
    """The settings of the preset ``name``, over those of the preset that it ``extends``, and so on."""
    if name not in presets(kind):
        raise UserError(f"unknown preset {name!r}; there are: {', '.join(presets(kind))}")
    return _extended(kind, PRESETS / kind.recipe / f"{name}.yaml", ())


def preset_line(kind: type[Common], name: str) -> str:
    """The first line of a preset, its comment, for listings."""
    return (PRESETS / kind.recipe / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _extended(kind: type[Common], path: Path, extending: tuple[Path, ...]) -> Values:
    """The settings in the file ``path``, over those that it extends: a preset's name, or a file beside it."""
    if path in extending:
        raise UserError(f"{path}: extends itself, by way of {', '.join(str(one) for one in extending)}")
    values = read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: extends must be the name of a preset or a file, got {base!r}")
    beside = path.parent / base
    if beside.suffix in FILES:
        return laid_over(_extended(kind, beside, (*extending, path)), values)
    preset = PRESETS / kind.recipe / f"{base}.yaml"
    if not preset.is_file():
        raise UserError(f"{path}: extends unknown preset {base!r}; there are: {', '.join(presets(kind))}")
    return laid_over(_extended(kind, preset, (*extending, path)), values)


def _written(kind: type[Common], path: Path) -> set[str]:
    """The settings that a file of the user's names, with those of the user's files that it extends.

    A record of a run, or a copy of one, names all that its version had, and so chooses none.
    """
    values = read_yaml(path)
    names, base = values.keys() - {"extends"}, values.get("extends")
    if base is not None and Path(base).suffix in FILES:
        names |= _written(kind, path.parent / base)
    record = path.suffix == ".json" or 2 * len(names) > len(dataclasses.fields(kind))
    return set() if record else names


def checked(kind: Any, values: dict[str, Any]) -> Any:
    """Settings of the dataclass ``kind`` from a mapping, every name, kind and choice checked."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if not isinstance(name, str):
            raise UserError(f"a setting's name must be text, got {name!r}")
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            raise UserError(f"unknown setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    settings = kind(**{name: _checked_field(kind, fields[name], value) for name, value in values.items()})
    settings.check()
    return settings


def read_yaml(path: Path) -> Values:
    """The mapping in the YAML file ``path``; :class:`UserError` if it cannot be read or is none."""
    try:
        values = _yaml.load(path.read_text(encoding="utf-8-sig")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"cannot read settings from {path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: settings must be a mapping, got {type(values).__name__}")
    return values


def laid_over(values: Values, layer: Values) -> Values:
    """``layer`` over ``values``; steps given in one replace epochs given in the other, and the other way round."""
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if layer.get(name) is not None and other not in layer:
            values = {key: value for key, value in values.items() if key != other}
    return values | layer


def assigned(kind: Any, values: Values, assignment: str) -> Values:
    """The setting that one ``KEY=VALUE`` or ``KEY.SUBKEY=VALUE`` makes of ``values``, as a mapping; read as a flag."""
    key, equals, text = assignment.partition("=")
    name, *subkeys = key.split(".")
    if not equals or not all([name, *subkeys]):
        raise UserError(f"--set wants KEY=VALUE, got {assignment!r}")
    field = next((field for field in dataclasses.fields(kind) if field.name == name), None)
    if field is not None and not subkeys:
        return {name: _from_text(kind, field, text, f"--set {assignment}")}
    where = f"--set {assignment}"
    if name == "trainer" and len(subkeys) == 1:
        value = trainer_flags.from_text(subkeys[0], text, lambda given: _read(given, where))
    else:
        value = _read(text, where)
    for i in reversed(range(len(subkeys))):
        inside = values.get(name)
        for subkey in subkeys[:i]:
            inside = inside.get(subkey) if isinstance(inside, dict) else None
        value = (inside if isinstance(inside, dict) else {}) | {subkeys[i]: value}
    return {name: value}


def _hint(kind: type[Common], name: str) -> Any:
    return typing.get_type_hints(kind)[name]


def _from_text(kind: type[Common], field: dataclasses.Field, text: str, where: str) -> Any:
    """What a command line gives for a setting: text as it is (YAML would read a bare ~ as nothing, and 2024 as a
    number), ``null`` for nothing where that is a value, a list by commas or spaces too, and else YAML."""
    hint = _hint(kind, field.name)
    kinds = typing.get_args(hint) or (hint,)
    if str in kinds:
        nothing = ("null", "none") if None in field.metadata.get("choices", ()) else ("null",)
        return None if type(None) in kinds and text in nothing else text
    if hint is list and not field.metadata.get("sentences") and not text.lstrip().startswith("["):
        return text.replace(",", " ").split()
    return _read(text, where)


def _read(text: str, where: str) -> Any:
    try:
        return _yaml.load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: cannot read {text!r}: {error}") from error


def _checked_field(kind: type[Common], field: dataclasses.Field, value: Any) -> Any:
    name = field.metadata.get("flag", field.name)
    return checked_value(name, value, _hint(kind, field.name), field.metadata)

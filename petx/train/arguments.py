"""Settings of ``petx train vlpet``: defaults, then a preset, a file, ``--set`` and flags, each over the last."""

import argparse
import dataclasses
import difflib
import types
import typing
from pathlib import Path

import yaml

from petx.errors import UserError

PRESETS = Path(__file__).parent / "presets"
LEVELS = ("large", "middleX", "middleY", "small")
ARMS = ("frozen", "projector", "vlpet", "lora", "full", "scratch", "random-host")


def option(default, text, **metadata):
    metadata["help"] = text
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class Settings:
    """Everything one run depends on. Lists and mappings are written as YAML, on the command line too."""

    # data
    data: str = option("easy-vqa", "data set", choices=("easy-vqa", "image-text", "video-text"))
    data_dir: str | None = option(None, "folder of one's own data (docs/training.md has the layout)")
    features_dir: str | None = option(None, "folder of the feature files (default: in DATA_DIR)")
    feature_width: int = option(1280, "width of a visual feature vector")
    visual_tokens: int = option(4, "visual tokens an image or video; longer features are max-pooled to this many")
    image_size: int = option(64, "easy-vqa: side in pixels the images are read at, a multiple of 32")
    train_images: int | None = option(None, "easy-vqa: use only this many training images (default: all)")
    dev_images: int = option(400, "easy-vqa: training images held out for development")
    test_images: int | None = option(None, "easy-vqa: use only this many test images (default: all)")
    tasks: list = option([], "own data: tasks to train on, by name")
    splits: dict = option({}, "own data: {task: {train: [...], dev: [...], test: [...]}}")

    # host
    host: str | None = option(None, "pretrained BART or T5, folder or hub name (default: a small BART pretrained here)")
    width: int = option(128, "small host: width of the model")
    layers: int = option(2, "small host: encoder layers, and decoder layers")
    attention_heads: int = option(4, "small host: attention heads")
    ffn: int = option(512, "small host: width of the feed-forward layers")
    init_std: float = option(0.09, "small host: standard deviation of the initial weights")
    host_steps: int = option(1200, "small host: pretraining steps")
    host_batch_size: int = option(64, "small host: examples a pretraining step")
    host_lr: float = option(1e-3, "small host: peak learning rate of the pretraining")
    dropout: float = option(0.0, "dropout of the host's layers")

    # tuning
    level: str = option("large", "granularity of VL-PET's gate", choices=LEVELS)
    rank: int = option(24, "bottleneck of VL-PET's encoder adapters")
    gate_rank: int = option(24, "bottleneck of the gate at level large")
    decoder_rank: int = option(24, "bottleneck of VL-PET's decoder value adapters")
    heads: int = option(4, "heads of VL-PET's multi-head modification")
    scale: float = option(1.0, "VL-PET's scaling factor s")
    zero_init: bool = option(False, "start VL-PET's up projections and gates at zero, as on T5")
    arms: list = option(["frozen", "projector", "vlpet", "lora", "full"], f"what to compare: {', '.join(ARMS)}")
    with_arms: list = option([], "further arms on request: scratch, random-host", flag="with")
    steps: int | None = option(None, "tuning steps")
    epochs: int | None = option(None, "tuning epochs, instead of steps")
    batch_size: int = option(64, "examples a tuning step")
    batch_sizes: dict = option({}, "examples a step for each task, over batch_size")
    lr: float = option(3e-3, "peak learning rate of VL-PET")
    lr_projector: float = option(3e-3, "peak learning rate of the projector alone")
    lr_lora: float = option(3e-3, "peak learning rate of LoRA")
    lr_full: float = option(1e-3, "peak learning rate of full tuning, and from scratch")
    warmup: float = option(0.1, "share of the steps with rising learning rate; linear decay to 0 after")
    clip: float = option(5.0, "largest norm of the gradient")
    weight_decay: float = option(0.01, "AdamW's weight decay")
    decay: str = option("clean", "what it spares: norms and biases, or as released", choices=("clean", "paper"))
    adam_epsilon: float = option(1e-6, "AdamW's epsilon")

    # evaluation and run
    num_beams: int | None = option(None, "beams of the final evaluation (default: 1, captions 5)")
    eval_batch_size: int = option(512, "examples a step of evaluation")
    eval_every: int = option(250, "steps between evaluations on the development split")
    save_every: int = option(250, "steps between checkpoints")
    workers: int = option(0, "processes that read the training data beside the one that trains")
    log_every: int = option(25, "steps between points of the loss curve")
    seed: int = option(0, "first seed")
    seeds: int = option(1, "how many seeds; the table then gives mean and standard deviation")
    output_dir: str | None = option(None, "where everything is written (default: petx-runs/PRESET)")
    resume: bool = option(False, "go on with an interrupted run in OUTPUT_DIR")

    @property
    def all_arms(self):
        return list(dict.fromkeys([*self.arms, *self.with_arms]))


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
PLAIN = ("output_dir", "resume")  # flags whose value is not read as YAML
_POSITIVE = ("rank", "heads", "seeds", "steps", "epochs", "batch_size", "host_steps", "host_batch_size")
_POSITIVE += ("eval_every", "save_every", "log_every", "eval_batch_size")
_HINTS = typing.get_type_hints(Settings)


def parse(argv=None, description=None):
    """Settings from a command line; :class:`UserError` names whatever is unknown or of the wrong kind."""
    parser = argparse.ArgumentParser(
        prog="petx train vlpet",
        usage="petx train vlpet [--preset NAME] [--config FILE] [--set KEY=VALUE] [--SETTING VALUE ...] [--resume]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--preset", default="easy-vqa", metavar="NAME", help=f"one of {', '.join(presets())} (default: easy-vqa)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, over the preset")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; KEY.SUBKEY too")
    for field in FIELDS.values():
        flag = field.metadata.get("flag", field.name)
        names = dict.fromkeys((f"--{flag}", f"--{flag.replace('_', '-')}"))
        default = "" if field.default in (None, dataclasses.MISSING, False) else f" (default: {field.default})"
        more = dict(action="store_true") if field.name == "resume" else dict(metavar="VALUE")
        parser.add_argument(*names, dest=field.name, help=(field.metadata["help"] + default).replace("%", "%%"), **more)
    given = vars(parser.parse_args(argv))

    preset, config, assignments = given.pop("preset"), given.pop("config", None), given.pop("set")
    values = read_preset(preset)
    if config is not None:
        values = _laid_over(values, _read_yaml(Path(config)))
    for assignment in assignments:
        values = _laid_over(values, _assigned(values, assignment))
    flags = {name: value if name in PLAIN else _from_text(FIELDS[name], value) for name, value in given.items()}
    return checked({"output_dir": f"petx-runs/{preset}"} | _laid_over(values, flags))


def presets():
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name):
    if name not in presets():
        raise UserError(f"unknown preset {name!r}; there are: {', '.join(presets())}")
    return _read_yaml(PRESETS / f"{name}.yaml")


def checked(values):
    """:class:`Settings` from a mapping, every name, kind and choice checked."""
    for name in values:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            raise UserError(f"unknown setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    settings = Settings(**{name: _coerced(FIELDS[name], value) for name, value in values.items()})
    for arm in settings.all_arms:
        if arm not in ARMS:
            raise UserError(f"unknown arm {arm!r}; there are: {', '.join(ARMS)}")
    if (settings.steps is None) == (settings.epochs is None):
        raise UserError(f"one of steps and epochs must be given, got steps={settings.steps}, epochs={settings.epochs}")
    if settings.rank % settings.heads:
        raise UserError(f"heads must divide rank, got heads={settings.heads}, rank={settings.rank}")
    for name in _POSITIVE:
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(settings, name)}")
    return settings


def _read_yaml(path):
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read settings from {path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: settings must be a mapping, got {type(values).__name__}")
    return values


def _laid_over(values, layer):
    """``layer`` over ``values``; steps given in one replace epochs given in the other, and the other way round."""
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if layer.get(name) is not None and other not in layer:
            values = {key: value for key, value in values.items() if key != other}
    return values | layer


def _assigned(values, assignment):
    """The setting that one ``KEY=VALUE`` or ``KEY.SUBKEY=VALUE`` makes of ``values``, as a mapping."""
    key, equals, text = assignment.partition("=")
    name, *subkeys = key.split(".")
    if not equals or not all([name, *subkeys]):
        raise UserError(f"--set wants KEY=VALUE, got {assignment!r}")
    value = _yaml(text, f"--set {assignment}")
    for i in reversed(range(len(subkeys))):
        inside = values.get(name)
        for subkey in subkeys[:i]:
            inside = inside.get(subkey) if isinstance(inside, dict) else None
        value = (inside if isinstance(inside, dict) else {}) | {subkeys[i]: value}
    return {name: value}


def _from_text(field, text):
    if _HINTS[field.name] is list:
        return text.strip("[] ").replace(",", " ").split()
    return text if _HINTS[field.name] is str else _yaml(text, f"--{field.name}")


def _yaml(text, where):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: cannot read {text!r}: {error}") from error


def _coerced(field, value):
    """``value`` in the field's type; YAML reads ``1e-3`` as text, so numbers are taken from text too."""
    hint = _HINTS[field.name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    name = field.metadata.get("flag", field.name)
    try:
        fits = isinstance(value, kind) if kind in (list, dict, bool, str) else not isinstance(value, bool)
        if not fits or (kind is int and float(value) != int(float(value))):
            raise ValueError
        value = kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be {'text' if kind is str else kind.__name__}, got {value!r}") from None
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    return value

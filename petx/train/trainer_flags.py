"""The setting ``trainer``: fields of transformers' ``TrainingArguments`` that go through, and those petx decides."""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import trainer_log_levels

from petx.errors import UserError

__all__ = [
    "DECIDED",
    "as_settings",
    "check",
    "check_machine",
    "check_optimizer",
    "from_text",
    "named_flags",
    "recomputing",
    "writes_tensorboard",
]

_PUSH = "petx sends nothing anywhere; the folder 'tuned' of an arm can be uploaded by itself"
_CHECKPOINT = "petx keeps one checkpoint, the last whole one, from which a run goes on to the same bits"
_GENERATE = "scoring is the recipe's: num_beams and the task's limits"
_SHARDED = "petx's checkpoints hold whole tensors; several processes run under DDP"

# Fields that petx decides, with the reason; a setting's name stands for "that setting decides it".
DECIDED: dict[str, str] = {
    "output_dir": "--output_dir",
    "max_steps": "--steps",
    "num_train_epochs": "--epochs",
    "per_device_train_batch_size": "--batch_size, over all processes together",
    "per_device_eval_batch_size": "--eval_batch_size",
    "learning_rate": "--lr",
    "lr_scheduler_type": "the recipe's schedule",
    "lr_scheduler_kwargs": "the recipe's schedule",
    "warmup_steps": "--warmup",
    "weight_decay": "--weight_decay",
    "adam_epsilon": "--adam_epsilon",
    "max_grad_norm": "--clip",
    "seed": "--seed",
    "data_seed": "--seed",
    "logging_steps": "--log_every",
    "logging_strategy": "--log_every",
    "logging_first_step": "the loss curve begins with the first step",
    "eval_steps": "--eval_every",
    "save_steps": "--save_every",
    "dataloader_num_workers": "--workers",
    "resume_from_checkpoint": "--resume",
    "dataloader_drop_last": "--drop_last",
    "train_sampling_strategy": "batches are of one task each, in an order that --seed decides",
    "length_column_name": "batches are of one task each, in an order that --seed decides",
    "sortish_sampler": "batches are of one task each, in an order that --seed decides",
    "dataloader_in_order": "batches are of one task each, in an order that --seed decides",
    "ignore_data_skip": "a resumed run ends in the same bits as one that was not interrupted",
    "accelerator_config": "petx deals the batches out to the processes itself",
    "remove_unused_columns": "batches hold what the host reads",
    "label_names": "batches hold what the host reads",
    "label_smoothing_factor": "the loss is the task's",
    "average_tokens_across_devices": "the loss is the task's",
    "neftune_noise_alpha": "it would change the method that is compared",
    "use_liger_kernel": "it replaces the layers that petx adapts",
    "liger_kernel_config": "it replaces the layers that petx adapts",
    "use_cpu": "a GPU is used if torch finds one; CUDA_VISIBLE_DEVICES= hides it",
    "ddp_find_unused_parameters": "every trained tensor gets a gradient",
    "disable_tqdm": "petx has a progress bar of its own",
    "auto_find_batch_size": "a run would not be what its settings say",
    "save_total_limit": _CHECKPOINT,
    "save_only_model": _CHECKPOINT,
    "save_on_each_node": _CHECKPOINT,
    "enable_jit_checkpoint": "--resume, which goes on from the last checkpoint",
    "restore_callback_states_from_checkpoint": "--resume, which goes on from the last checkpoint",
    "load_best_model_at_end": "--keep best",
    "metric_for_best_model": "--keep best",
    "greater_is_better": "--keep best",
    "push_to_hub": _PUSH,
    "hub_token": _PUSH,
    "hub_private_repo": _PUSH,
    "hub_model_id": _PUSH,
    "hub_strategy": _PUSH,
    "hub_always_push": _PUSH,
    "hub_revision": _PUSH,
    "predict_with_generate": _GENERATE,
    "generation_max_length": _GENERATE,
    "generation_num_beams": _GENERATE,
    "generation_config": _GENERATE,
    "prediction_loss_only": _GENERATE,
    "include_for_metrics": _GENERATE,
    "batch_eval_metrics": _GENERATE,
    "eval_accumulation_steps": _GENERATE,
    "eval_do_concat_batches": _GENERATE,
    "eval_use_gather_object": _GENERATE,
    "bf16_full_eval": _GENERATE,
    "fp16_full_eval": _GENERATE,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "deepspeed": _SHARDED,
    "parallelism_config": _SHARDED,
    "do_train": "a run trains and scores",
    "do_eval": "a run trains and scores",
    "do_predict": "a run trains and scores",
    "local_rank": "torchrun",
}
_OF_A_MODEL = ("galore", "apollo", "lomo", "adalomo")
STRATEGIES = {"eval_strategy": ("no", "steps"), "save_strategy": ("no", "steps")}
STRATEGIES |= dict.fromkeys(("log_level", "log_level_replica"), tuple(trainer_log_levels))


def as_settings(argv: list[str]) -> list[str]:
    """``argv`` with each ``--trainer.KEY=VALUE`` or ``--trainer.KEY VALUE`` as ``--set trainer.KEY=VALUE``."""
    found, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--trainer."):
            found.append(word)
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} wants a value, as in --{key}=true")
            value = rest.pop(0)
        found += ["--set", f"{key}={value}"]
    return found


def named_flags() -> dict[str, dataclasses.Field]:
    """The fields of ``TrainingArguments`` that go through, by name."""
    return {field.name: field for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.name not in DECIDED}


def from_text(name: str, text: str, read: Callable[[str], Any]) -> Any:
    """What a command line gives for a field: a text as it is (YAML would read 2024 as a number), ``null`` for nothing
    where that is a value, and else what ``read`` makes of it, if that is what the field takes."""
    if name not in named_flags():
        return read(text)
    kinds = _kinds(typing.get_type_hints(Seq2SeqTrainingArguments)[name])
    if kinds <= {str, type(None)}:
        return None if text == "null" and type(None) in kinds else text
    value = read(text)
    return text if str in kinds and type(value) not in kinds else value


def check(given: dict[str, Any]) -> dict[str, Any]:
    """``given`` with every value in its field's type; UserError for a name or a value that cannot go through."""
    fields, hints = named_flags(), typing.get_type_hints(Seq2SeqTrainingArguments)
    return {name: _checked(name, value, fields, hints) for name, value in given.items()}


def _checked(name: str, value: Any, fields: dict[str, Any], hints: dict[str, Any]) -> Any:
    if not isinstance(name, str):
        raise UserError(f"trainer: a field's name must be text, got {name!r}")
    if name in DECIDED:
        reason = DECIDED[name]
        raise UserError(f"trainer.{name} is decided by {'' if reason.startswith('--') else 'petx: '}{reason}")
    if name not in fields:
        close = difflib.get_close_matches(name, [*fields, *DECIDED], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"trainer: TrainingArguments has no field {name!r}{hint}")
    if name in STRATEGIES and value not in STRATEGIES[name]:
        value = "no" if value is False else value  # YAML reads a bare no so
        if value not in STRATEGIES[name]:
            raise UserError(f"trainer.{name} must be one of {', '.join(STRATEGIES[name])}; got {value!r}")
    kinds = _kinds(hints[name])
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, str) and not kinds & {str} and kinds & {int, float}:
        value = _number(value)  # YAML reads 1e-3 as text
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        value = float(value)
    fits = any(type(value) is kind for kind in kinds) and not (isinstance(value, float) and not math.isfinite(value))
    if not fits:
        wanted = " or ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in kinds))
        raise UserError(f"trainer.{name} must be {wanted}, got {value!r}")
    if name == "gradient_accumulation_steps" and value < 1:
        raise UserError(f"trainer.{name} must be at least 1, got {value}")
    if name in ("adam_beta1", "adam_beta2") and not 0 <= value < 1:
        raise UserError(f"trainer.{name} must be in [0, 1), got {value}")
    return value


def _kinds(hint: Any) -> set[type]:
    """The plain types that a hint allows; an enum of strategies is its text."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return set().union(*(_kinds(one) for one in typing.get_args(hint)))
    if origin is not None:
        return {origin}
    return {hint} if hint in (bool, int, float, str, list, dict, type(None)) else {str}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def recomputing(given: dict[str, Any]) -> dict[str, Any]:
    """The field of how layers are recomputed, if ``given`` asks for that and does not say how: without reentry, since
    the other form needs inputs that have gradients, and a frozen model's have none."""
    forms = [name for name in ("activation_checkpointing", "gradient_checkpointing") if name in named_flags()]
    if not any(given.get(name) for name in forms) or any(f"{name}_kwargs" in given for name in forms):
        return {}
    return {f"{forms[0]}_kwargs": {"use_reentrant": False}}


def check_machine(given: dict[str, Any]) -> None:
    """UserError if this machine, or what is installed on it, cannot do what ``given`` (checked) asks for."""
    if given.get("fp16") and not torch.cuda.is_available():
        raise UserError("trainer.fp16 needs a GPU, and torch finds none; trainer.bf16 works on a CPU")
    if given.get("fp16") and given.get("bf16"):
        raise UserError("trainer.fp16 and trainer.bf16 are both true; choose one")
    there = get_available_reporting_integrations()
    for name in _reports(given):
        if name not in ("none", "all", *there):
            known = f"installed are {', '.join(there)}" if there else "none of them is installed"
            raise UserError(f"trainer.report_to: {name!r} is not installed, or unknown to transformers; {known}")


def check_optimizer(args: Seq2SeqTrainingArguments) -> None:
    """Make the optimizer of one number as the training makes its own; raises what that raises. Not those that look
    into the model."""
    if not str(getattr(args.optim, "value", args.optim)).startswith(_OF_A_MODEL):
        kind, options = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(args)
        kind([nn.Parameter(torch.zeros(1))], **options)


def _reports(given: dict[str, Any]) -> list[str]:
    asked = given.get("report_to", "none")
    return [asked] if isinstance(asked, str) else list(asked or ())


def writes_tensorboard(given: dict[str, Any], folder: Path) -> None:
    """Let TensorBoard's curves lie in ``folder``, and not in the training's, which goes when that is done."""
    if {"tensorboard", "all"} & set(_reports(given)):
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)

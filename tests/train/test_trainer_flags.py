"""``--trainer.KEY=VALUE``: fields of transformers' TrainingArguments that go through, and those that petx decides."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Seq2SeqTrainingArguments

from petx.errors import UserError
from petx.train import trainer_flags, vlpet
from petx.train.petal import arguments as petal_arguments
from petx.train.run import Run
from petx.train.settings import checked, parse
from petx.train.trainer import PetTrainer
from petx.train.vlpet import arguments
from tests.fixtures import image_text

FIELDS = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}


@pytest.mark.parametrize("kind", [arguments.Settings, petal_arguments.Settings])
def test_flags_of_every_form_go_into_the_settings(kind):
    argv = ["--trainer.bf16=true", "--trainer.gradient_accumulation_steps", "2", "--set", "trainer.adam_beta1=9e-1"]
    found = parse(kind, [*argv, "--trainer.optim=adamw_torch", "--trainer.eval_strategy=no", "--seed", "3"])
    wanted = dict(bf16=True, gradient_accumulation_steps=2, adam_beta1=0.9, optim="adamw_torch", eval_strategy="no")
    assert found.trainer == wanted and found.seed == 3 and found.accumulated == 2
    again = checked(kind, json.loads(json.dumps(dataclasses.asdict(found))))
    assert again.trainer == wanted


def test_a_yaml_file_sets_them_and_a_flag_adds_one(tmp_path):
    (tmp_path / "own.yaml").write_text("trainer: {bf16: true, optim: adamw_torch}\n")
    found = parse(arguments.Settings, ["--config", str(tmp_path / "own.yaml"), "--trainer.bf16=false"])
    assert found.trainer == dict(bf16=False, optim="adamw_torch")


@pytest.mark.parametrize("name", sorted(trainer_flags.DECIDED))
def test_what_petx_decides_is_refused_by_name_with_the_reason(name):
    assert name in FIELDS  # a field that transformers renamed would be refused as unknown
    with pytest.raises(UserError, match=rf"trainer\.{name} is decided by .{{4}}"):
        trainer_flags.check({name: 1})


def test_a_setting_that_decides_exists():
    named = {reason.split()[0].rstrip(",") for reason in trainer_flags.DECIDED.values() if reason.startswith("--")}
    known = {field.name for kind in (arguments, petal_arguments) for field in dataclasses.fields(kind.Settings)}
    assert {name.removeprefix("--") for name in named} <= known


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(bf_16=True), "TrainingArguments has no field 'bf_16'; did you mean 'bf16'"),
        ({1: True}, "trainer: a field's name must be text, got 1"),
        (dict(bf16="yes"), r"trainer\.bf16 must be bool, got 'yes'"),
        (dict(bf16=1), r"trainer\.bf16 must be bool, got 1"),
        (dict(gradient_accumulation_steps=2.5), r"trainer\.gradient_accumulation_steps must be int, got 2\.5"),
        (dict(gradient_accumulation_steps=0), "must be at least 1, got 0"),
        (dict(adam_beta1=float("nan")), r"trainer\.adam_beta1 must be float, got nan"),
        (dict(adam_beta1="x"), r"trainer\.adam_beta1 must be float, got 'x'"),
        (dict(log_level="loud"), r"trainer\.log_level must be one of detail, debug, info, .*; got 'loud'"),
        (dict(adam_beta1=2), r"trainer\.adam_beta1 must be in \[0, 1\), got 2\.0"),
        (dict(adam_beta2=-0.1), r"trainer\.adam_beta2 must be in \[0, 1\), got -0\.1"),
        (dict(save_strategy="epoch"), r"trainer\.save_strategy must be one of no, steps; got 'epoch'"),
    ],
)
def test_a_wrong_name_or_type_is_told(given, message):
    with pytest.raises(UserError, match=message):
        trainer_flags.check(given)


def test_a_text_is_taken_as_it_is_written():
    """Where YAML reads a number, a date, a truth, nothing, or nothing that it can read."""
    for text in ("2024", "1e3", "2024-01-02", "off", "~", "a: b: c", "[1"):
        for argv in ([f"--trainer.run_name={text}"], ["--set", f"trainer.run_name={text}"]):
            assert parse(arguments.Settings, argv).trainer == dict(run_name=text)
    assert parse(arguments.Settings, ["--trainer.run_name=null"]).trainer == dict(run_name=None)
    for text, value in (("2024", "2024"), ("none", "none"), ("[a, b]", ["a", "b"]), ("null", None)):
        assert parse(arguments.Settings, [f"--trainer.report_to={text}"]).trainer == dict(report_to=value)


def test_mixed_precision_is_said_once():
    with pytest.raises(UserError, match="amp=bf16 and trainer.fp16 or trainer.bf16 say the same thing"):
        parse(arguments.Settings, ["--amp", "bf16", "--trainer.bf16=true"])
    with pytest.raises(UserError, match="--trainer.bf16 wants a value"):
        parse(arguments.Settings, ["--trainer.bf16", "--seed", "1"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(
            dict(fp16=True),
            "trainer.fp16 needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (dict(report_to="tensorboards"), "trainer.report_to: 'tensorboards' is not installed, or unknown"),
        (dict(optim="sgdd"), "trainer: .*sgdd"),
        (dict(optim="rmsprop", optim_args="alpha=-1"), "trainer: .*alpha"),
        (dict(logging_nan_inf_filter=True, dataloader_prefetch_factor=4), "trainer: .*prefetch_factor"),
    ],
)
def test_what_the_machine_cannot_do_is_said_before_any_work(own, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        vlpet.run(image_text.settings(own, tmp_path / "out", adamw="torch", trainer=trainer_flags.check(given)))
    assert not (tmp_path / "out").exists()


def test_an_accumulated_step_reads_as_many_batches(own, tmp_path):
    run = Run(vlpet.RECIPE, image_text.settings(own, tmp_path / "out", trainer=dict(gradient_accumulation_steps=3)))
    args = run.training_arguments(tmp_path, steps=2, lr=1e-3, seed=0)
    assert args.gradient_accumulation_steps == 3 and not args.dataloader_pin_memory
    assert trainer_flags.recomputing(dict(bf16=True)) == {}
    ((name, value),) = trainer_flags.recomputing(dict(gradient_checkpointing=True)).items()
    assert name in FIELDS and value == {"use_reentrant": False}
    read = dict(args=args, tasks=[range(4)], batch_sizes=[2], mixture=range(4), data_collator=None, drop_last=False)
    assert len(list(PetTrainer.get_train_dataloader(SimpleNamespace(**read)).batch_sampler)) == 2 * 3


def run(own, folder, **trainer):
    given = dict(arms=["vlpet"], steps=4, epochs=None, save_every=2, log_every=1, num_beams=1, adamw="torch")
    assert vlpet.run(image_text.settings(own, folder, trainer=trainer, **given)) == 0
    record = json.loads((folder / "vlpet" / "seed-42" / "result.json").read_text())
    return record["curve"]["loss"]


@pytest.mark.slow
def test_a_run_with_them(own, tmp_path):
    plain = run(own, tmp_path / "plain")
    half = run(own, tmp_path / "half", bf16=True, eval_strategy="no", save_strategy="no", dataloader_pin_memory=True)
    assert half != plain
    torch.testing.assert_close(torch.tensor(half), torch.tensor(plain), rtol=0.05, atol=0.05)
    options = dict(gradient_accumulation_steps=2, gradient_checkpointing=True, optim="adamw_torch")
    accumulated = run(own, tmp_path / "accumulated", **options)
    assert accumulated[0][1] == pytest.approx((plain[0][1] + plain[1][1]) / 2, rel=0.02)  # its first two batches
    recorded = json.loads((tmp_path / "half" / "settings.json").read_text())["trainer"]
    assert recorded == dict(bf16=True, eval_strategy="no", save_strategy="no", dataloader_pin_memory=True)


@pytest.mark.slow
def test_tensorboard_gets_the_curves(own, tmp_path):
    run(own, tmp_path / "out", report_to="tensorboard")
    assert list((tmp_path / "out" / "vlpet" / "seed-42" / "tensorboard").glob("events*"))

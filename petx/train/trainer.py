"""transformers' Seq2SeqTrainer with one task per batch, weighted losses, and checkpoints of what is trained."""

import contextlib
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from petx import hosts
from petx.data.batches import IGNORED, RoundRobinBatches, TaskMixture
from petx.data.pairs import RETRIEVAL
from petx.errors import UserError
from petx.files import disk_is_full, written_whole
from petx.train import checkpoints, scoring, trainer_flags
from petx.train.adamw import ReleasedAdamW


class PetTrainer(Seq2SeqTrainer):
    """Trains ``model`` on ``tasks`` for ``args.max_steps`` batches and scores it on ``dev_tasks`` meanwhile.

    Differs from its base in: one task per batch, in an order that only ``args.seed`` decides; the loss of
    :class:`petx.data.task.Task`; which weights decay; checkpoints that hold only trained tensors and appear whole.

    Args:
        batch_sizes: examples in a step, for each of ``tasks``; over all processes together.
        decay: ``clean`` exempts norms and biases from weight decay, ``paper`` what :meth:`paper_decay` leaves out.
        adamw: ``torch``, or ``released``: :class:`petx.train.adamw.ReleasedAdamW`.
        drop_last: leave out what does not fill a batch at the end of a task's epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        tokenizer: Any,
        tasks: list,
        batch_sizes: list[int],
        *,
        dev_tasks: Sequence[Any] = (),
        decay: str = "clean",
        adamw: str = "torch",
        drop_last: bool = False,
    ) -> None:
        self.tasks, self.batch_sizes, self.dev_tasks = tasks, batch_sizes, dev_tasks
        self.tokenizer, self.decay, self.drop_last = tokenizer, decay, drop_last
        self._scratch: str | None = None  # where a checkpoint is being written
        self.before = 0.0  # seconds that earlier attempts at this training took
        self.host = hosts.bound(model, tokenizer)
        collate = self.host.batch
        self.mixture, none_here = TaskMixture(tasks), cast(Dataset, [])  # :meth:`evaluate` reads ``dev_tasks``
        super().__init__(model, args, train_dataset=self.mixture, eval_dataset=none_here, data_collator=collate)
        if adamw == "released":
            betas, eps = (self.args.adam_beta1, self.args.adam_beta2), self.args.adam_epsilon
            self.optimizer_cls_and_kwargs = (ReleasedAdamW, dict(lr=self.args.learning_rate, betas=betas, eps=eps))
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)  # it prints every log
        self.add_callback(Progress)
        self._step_times = StepTimes()
        self.add_callback(self._step_times)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.started = time.monotonic()
        if resume_from_checkpoint is not None:
            self.before = checkpoints.seconds(resume_from_checkpoint)
        try:
            done = super().train(resume_from_checkpoint, *args, **kwargs)
            self._refuse_diverged()  # since the last log and checkpoint
            return done
        except UserError as error:
            raise UserError(_without_worker(str(error))) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or not any(word in str(error) for word in _GONE):
                raise
            raise UserError(
                f"workers: a process that reads the training data has gone ({error}). The last whole checkpoint is "
                "kept, and --resume goes on from it"
            ) from error

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the base's; ends a training that diverged, which would go on to its end with an adapter of NaN."""
        if not math.isfinite(logs.get("loss", 0.0)):
            self._refuse_diverged()
        super().log(logs, *args, **kwargs)

    def _refuse_diverged(self) -> None:
        """A loss alone may overflow under fp16, whose scaler leaves that step out."""
        for name, tensor in checkpoints.trainable_state(self._trained).items():
            if not bool(tensor.isfinite().all()):
                raise UserError(
                    f"the training diverged: at step {self.state.global_step} {name} has values that are not finite. "
                    f"Its learning rate was {self.args.learning_rate:g}: lower it, raise warmup, or lower clip, in "
                    "another output_dir"
                )

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, development scores included, earlier attempts too."""
        return self.before + time.monotonic() - self.started

    @property
    def step_ms(self) -> float | None:
        """Median wall time of this attempt's steps in milliseconds, without loading data, scoring and saving; None
        without a step."""
        times = self._step_times.seconds
        return 1e3 * statistics.median(times) if times else None

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by accelerate: the batches are this process's share already.
        batches = RoundRobinBatches(
            list(map(len, self.tasks)),
            self.batch_sizes,
            steps=self.args.max_steps * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
            rank=self.args.process_index,
            processes=self.args.world_size,
            drop_last=self.drop_last,
        )
        args = self.args
        reading: dict[str, Any] = dict(num_workers=args.dataloader_num_workers, pin_memory=args.dataloader_pin_memory)
        if args.dataloader_num_workers:  # torch refuses them without workers, and so does petx by name
            reading |= dict(
                prefetch_factor=args.dataloader_prefetch_factor,
                persistent_workers=args.dataloader_persistent_workers,
                multiprocessing_context=args.dataloader_multiprocessing_context,
            )
        return DataLoader(self.mixture, batch_sampler=batches, collate_fn=self.data_collator, **reading)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.decay == "paper":
            return self.paper_decay(model)
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith("temperature.log_scale")]

    def paper_decay(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay in the released code of the method; a recipe's trainer says which."""
        raise NotImplementedError

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        if inputs["loss_over"] == RETRIEVAL:
            host: Any = self.host
            with self.accelerator.autocast():
                loss = host.retrieval_loss(self.accelerator.unwrap_model(model), inputs)
            return (loss, None) if return_outputs else loss
        labels, weight, over = inputs.pop("labels"), inputs.pop("loss_weight"), inputs.pop("loss_over")
        outputs = model(**inputs)
        losses = self.host.token_losses(outputs.logits, labels)
        tokens = (labels != IGNORED).sum(1)
        if over == "token":  # the mean over all processes' tokens, once DDP has averaged the gradients
            loss = losses.sum() / self.accelerator.reduce(tokens.sum().float(), "mean")
        else:
            loss = (losses.sum(1) / tokens * weight).mean()
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Score the development tasks whose answers are known; the main score is logged as ``eval_score``."""
        known = [task for task in self.dev_tasks if task.answered]
        if not known:
            return {}
        scores, _ = scoring.evaluate(self._trained, known, self.tokenizer, batch_size=self.args.eval_batch_size)
        name, value = next(iter(scores.items()))
        scored: dict[str, Any] = {"eval_score": value, "eval_metric": name}
        self.log(scored)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scored)
        return scored

    @property
    def _trained(self) -> nn.Module:
        assert self.model is not None
        return self.model

    @property
    def _output_dir(self) -> str:
        assert self.args.output_dir is not None
        return self.args.output_dir

    def _get_output_dir(self, trial: Any) -> str:
        return self._scratch or self._output_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        final = Path(self._output_dir, f"checkpoint-{self.state.global_step}")
        writer = self.args.should_save
        self._refuse_diverged()  # what is kept to go on from is of use
        try:
            with written_whole(final) if writer else contextlib.nullcontext(final) as target:
                shared = [str(target.parent)]
                if self.args.world_size > 1:
                    broadcast_object_list(shared)  # every process adds its random state to the writer's folder
                (self._scratch,) = shared
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if writer:
                    checkpoints.mark_whole(target, self.seconds)
        except (OSError, RuntimeError, SafetensorError) as error:
            room = "make room, then use --resume" if disk_is_full(error) else "--resume goes on from it"
            raise UserError(f"cannot write {final}: {error}. The last whole checkpoint is kept; {room}") from error
        finally:
            self._scratch = None
        if writer:
            checkpoints.remove_others(self._output_dir, final)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            checkpoints.save_trainable(self._trained, output_dir or self._output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoints.load_trainable(self._trained, resume_from_checkpoint)


_GONE = ("exited unexpectedly", "is killed by signal")  # torch's words for a worker that ended without an error


def _without_worker(text: str) -> str:
    """The message of an error that a process reading the data raised, without the traceback that torch adds."""
    _, found, message = text.rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")
    return message.strip() if found and "DataLoader worker" in text else text


class StepTimes(TrainerCallback):
    """Wall time of every step, from its batch to the optimizer's end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begun)


class Progress(TrainerCallback):
    """A progress bar with the latest loss, on a terminal; a line at every score on the development tasks, anywhere."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loss = float("nan")
        disable = None if state.is_world_process_zero else True  # None: if stderr is no terminal
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", leave=False, disable=disable)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.loss = logs["loss"]
            self.bar.set_postfix(loss=f"{self.loss:.3f}")
        elif "eval_score" in logs and state.is_world_process_zero:
            scored = f"dev {logs['eval_metric']} {logs['eval_score']:.1f}"
            tqdm.write(f"  step {state.global_step}/{state.max_steps}: loss {self.loss:.3f}, {scored}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def warmup_steps(settings: Any, steps: int) -> int:
    """Steps of the warm-up, which ``settings`` give as a number or as a share of all."""
    return round(settings.warmup if settings.warmup >= 1 else settings.warmup * steps)


def training_arguments(
    output_dir: Path, settings: Any, *, steps: int, lr: float, seed: int, evaluates: bool = True, **more: Any
) -> Seq2SeqTrainingArguments:
    """``Seq2SeqTrainingArguments`` of one training: AdamW (betas 0.9 and 0.999), warm-up, then linear decay to 0.

    ``more`` are further fields of them, over these.
    """
    own: dict[str, Any] = dict(
        output_dir=str(output_dir),
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=warmup_steps(settings, steps),
        weight_decay=settings.weight_decay,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.clip,
        per_device_eval_batch_size=settings.eval_batch_size,
        seed=seed,
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would show the losses before in place of NaN
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.eval_every,
        save_steps=settings.save_every,
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        report_to="none",
        ddp_find_unused_parameters=False,
        disable_tqdm=True,  # for Progress
        use_cpu=not torch.cuda.is_available(),  # said so, accelerate takes gloo under torchrun
        dataloader_pin_memory=False,
        **trainer_flags.recomputing(more),
    )
    if not evaluates:
        more.pop("eval_strategy", None)
    args = Seq2SeqTrainingArguments(**own | more)
    args._n_gpu = min(args.n_gpu, 1)  # a process uses one device; several are torchrun's business, not DataParallel's
    return args

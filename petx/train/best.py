"""The best state of a training by its development scores, kept on disk beside the checkpoints."""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.trainer_callback import TrainerCallback

from petx._checks import is_number
from petx.errors import UserError
from petx.files import damaged_files, read_json, write_json, written_whole
from petx.train import checkpoints

FOLDER, NOTE = "best", "best.json"


def check(run: Any) -> None:
    """Raise :class:`UserError` if ``run`` is to keep the best state and nothing can tell which that is."""
    if run.settings.keep == "best" and not any(task.answered for task in run.data.dev):
        names = ", ".join(task.name for task in run.data.dev)
        raise UserError(f"keep=best needs a development split whose answers are known; those of {names} are not")


class BestState(TrainerCallback):
    """Keeps what ``trainer`` trains as it was at the highest development score; of equal scores, at the first.

    It lies in ``best`` of the trainer's folder, so that a resumed training knows it.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.folder = trainer, Path(trainer.args.output_dir, FOLDER)
        self.note: dict[str, Any] | None = None  # step and score of what is kept
        self.scored: int | None = None  # the last step that was scored
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and (self.folder / NOTE).is_file():
            again = f"remove {self.folder.parent} to begin this training again"
            for name, reason in damaged_files(self.folder).items():
                raise UserError(f"{self.folder / name} is damaged ({reason}); {again}")
            self.note = read_json(self.folder / NOTE, "step", "score", hint=again)
            for name in ("step", "score"):
                if not is_number(self.note[name]):
                    raise UserError(f"{self.folder / NOTE}: {name} must be a number, got {self.note[name]!r}; {again}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.scored = state.global_step
        if self.note is not None and metrics["eval_score"] <= self.note["score"]:
            return
        self.note = {"step": state.global_step, "score": metrics["eval_score"]}
        if PartialState().is_main_process:
            with written_whole(self.folder) as target:
                checkpoints.save_trainable(self.trainer.model, target)
                write_json(target / NOTE, self.note)

    def restore(self) -> dict[str, Any]:
        """Put the best state back into the model, once the last one is scored, too; its ``step`` and ``score``."""
        if self.scored != self.trainer.state.global_step:
            self.trainer.evaluate()
        PartialState().wait_for_everyone()
        assert self.note is not None  # of the evaluation above at the latest
        checkpoints.load_trainable(self.trainer.model, self.folder)
        return self.note

"""``--keep best``: what is scored and saved is the best state on the development split."""

import json
from types import SimpleNamespace

import pytest
import torch

from petx.errors import UserError
from petx.train import checkpoints, stages, vlpet
from petx.train.best import BestState
from petx.train.vlpet import arguments
from tests.fixtures import image_text
from tests.train.test_train_resume import StopAt, make_trainer


def scripted(trainer, scores):
    """``trainer`` whose development scores are ``scores`` in turn; the states at which they were given."""
    states = []
    given = iter(scores)

    def evaluate(*args, **kwargs):
        metrics = {"eval_score": next(given), "eval_metric": "average"}
        states.append({name: t.clone() for name, t in checkpoints.trainable_state(trainer.model).items()})
        trainer.log(metrics)
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    trainer.evaluate = evaluate
    return states


def same(model, state):
    return all(torch.equal(t, state[name]) for name, t in checkpoints.trainable_state(model).items())


def trained(own, folder, *, steps=7, callbacks=()):
    trainer = make_trainer(own, folder, steps=steps, callbacks=callbacks)
    trainer.args.eval_steps = trainer.state.eval_steps = 2
    return trainer, BestState(trainer)


def test_the_best_state_comes_back_and_the_last_is_scored_too(own, tmp_path):
    trainer, best = trained(own, tmp_path)
    states = scripted(trainer, [10.0, 30.0, 30.0, 20.0])  # after steps 2, 4, 6 and the last, 7
    stages.train(trainer)
    assert best.restore() == {"step": 4, "score": 30.0} and len(states) == 4
    assert same(trainer.model, states[1]) and not same(trainer.model, states[3])


@pytest.mark.slow
def test_the_last_state_may_be_the_best(own, tmp_path):
    trainer, best = trained(own, tmp_path, steps=3)
    states = scripted(trainer, [10.0, 11.0])
    stages.train(trainer)
    assert best.restore() == {"step": 3, "score": 11.0} and same(trainer.model, states[1])


@pytest.mark.slow
def test_a_resumed_training_knows_it_and_a_new_one_does_not(own, tmp_path):
    trainer, _ = trained(own, tmp_path, callbacks=[StopAt(5)])
    states = scripted(trainer, [50.0, 20.0])
    with pytest.raises(KeyboardInterrupt):
        stages.train(trainer)
    trainer, best = trained(own, tmp_path)  # from the checkpoint at step 3
    scripted(trainer, [20.0, 30.0, 40.0])
    stages.train(trainer)
    assert best.restore() == {"step": 2, "score": 50.0} and same(trainer.model, states[0])
    trainer, best = trained(own, tmp_path)  # interrupted after the end: nothing is left to do but to score
    again = scripted(trainer, [20.0])
    stages.train(trainer)
    assert best.restore() == {"step": 2, "score": 50.0} and len(again) == 1 and same(trainer.model, states[0])
    for folder in tmp_path.glob("checkpoint-*"):
        (folder / checkpoints.MARKER).unlink()
    trainer, best = trained(own, tmp_path, steps=2)  # from the start
    scripted(trainer, [5.0])
    stages.train(trainer)
    assert best.restore() == {"step": 2, "score": 5.0}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("best.json", '{"step": 2, "sc', r"best.json is damaged .* remove .* to begin this training again"),
        ("best.json", '{"step": 2, "score": null}', "best.json: score must be a number, got None; remove"),
        ("trainable.safetensors", "", r"trainable.safetensors is damaged"),
    ],
)
def test_a_damaged_best_state_is_told_before_the_training_goes_on(tmp_path, file, text, message):
    args = SimpleNamespace(output_dir=str(tmp_path))
    best = BestState(SimpleNamespace(args=args, add_callback=lambda callback: None))
    best.folder.mkdir()
    checkpoints.save_tensors({"a": torch.zeros(1)}, best.folder / checkpoints.TENSORS)
    (best.folder / "best.json").write_text('{"step": 2, "score": 5.0}')
    best.on_train_begin(args, SimpleNamespace(global_step=2), None)
    assert best.note == {"step": 2, "score": 5.0}
    (best.folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        best.on_train_begin(args, SimpleNamespace(global_step=2), None)


def test_without_development_scores_it_is_refused(own, tmp_path):
    with pytest.raises(UserError, match="keep=best needs development scores, and trainer.eval_strategy=no"):
        arguments.checked({"steps": 1, "keep": "best", "trainer": {"eval_strategy": "no"}})
    with pytest.raises(UserError, match="keep must be one of last, best; got 'first'"):
        arguments.checked({"steps": 1, "keep": "first"})


def test_a_development_split_without_answers_is_refused(own, tmp_path):
    folder = tmp_path / "own"
    image_text.write_data(folder / "data")
    path = folder / "data" / "GQA" / "testdev.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{key: value for key, value in row.items() if key != "label"} for row in rows]))
    (folder / "bart").symlink_to(own / "bart")
    settings = image_text.settings(folder, tmp_path / "out", tasks=["gqa"], keep="best")
    with pytest.raises(UserError, match="keep=best needs a development split whose answers are known; those of gqa"):
        vlpet.run(settings)


@pytest.mark.slow
def test_a_run_reproduces_its_best_state(own, tmp_path, capsys):
    settings = image_text.settings(own, tmp_path, arms=["vlpet"], keep="best", eval_every=3)
    assert vlpet.run(settings) == 0  # the saved adapter scores the same in a fresh model
    record = json.loads((tmp_path / "vlpet" / "seed-42" / "result.json").read_text())
    assert record["kept"]["score"] == max(score for _, score in record["curve"]["dev"])
    assert record["curve"]["dev"][-1][0] == record["steps"]
    assert record["dev"]["average"] == record["kept"]["score"]
    assert f"kept the best state, of step {record['kept']['step']}: dev" in capsys.readouterr().out

"""The table of a run's arms, and the times in it."""

from types import SimpleNamespace

import pytest

from petx.train import report
from petx.train.trainer import StepTimes


def record(seed, step_ms):
    return dict(
        arm="vlpet", seed=seed, trainable=10, total=40, steps=3, seconds=2.0, step_ms=step_ms, test={"accuracy": 90.0}
    ) | {"dev": {"accuracy": 80.0}}


def test_the_column_of_a_steps_time():
    """The mean of the seeds' medians; none if nothing was trained, or for a record of an earlier version."""
    run = SimpleNamespace(recipe=SimpleNamespace(columns=()), title=lambda arm, one: arm)
    old = record(0, None)
    del old["step_ms"]
    arms = {"vlpet": [record(0, 10.0), record(1, 12.0)], "frozen": [record(0, None)], "lora": [old]}
    baselines = {"majority": {"test": {"accuracy": 37.0}, "dev": {"accuracy": 36.0}}}
    header, lines = report.rows(run, {"baselines": baselines, "arms": arms})
    assert header[-1] == "ms per step" and {len(line) for line in lines} == {len(header)}
    assert [line[-1] for line in lines] == ["-", "11.0 ± 1.4", "-", "-"]


def test_a_step_lasts_from_its_batch_to_the_optimizers_end(monkeypatch):
    clock = iter([1.0, 1.5, 9.0, 9.25])
    monkeypatch.setattr("petx.train.trainer.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    times = StepTimes()
    for _ in range(2):
        times.on_step_begin(None, None, None)
        times.on_step_end(None, None, None)
    assert times.seconds == pytest.approx([0.5, 0.25])

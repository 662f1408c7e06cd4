"""The benchmark of reading feature files runs, and gives what a training would read."""

import sys

import torch

from benchmarks import feeding


def test_batches_are_those_of_a_training(tmp_path):
    feeding.write(tmp_path, 5)
    batches = list(feeding.loader(tmp_path, 5, batch=2, workers=0, steps=4))
    assert len(batches) == 4 and sorted(len(batch["labels"]) for batch in batches[:3]) == [1, 2, 2]
    assert batches[0]["visual_features"].shape[1:] == (feeding.TOKENS, feeding.WIDTH)
    first = torch.stack([one for batch in batches[:3] for one in batch["visual_features"]])
    assert len(first.flatten(1).unique(dim=0)) == 5  # every file once an epoch


def test_it_says_what_a_step_costs(monkeypatch, capsys):
    given = ["--images", "4", "--batch", "2", "--workers", "0", "--steps", "3", "--consumer", "1"]
    monkeypatch.setattr(sys, "argv", ["feeding", *given])
    feeding.main()
    shown = capsys.readouterr().out
    assert "2 images a step, 0 workers" in shown and "CPU time of reading an image" in shown and "MiB" in shown

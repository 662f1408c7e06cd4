"""How a run ends that is stopped, and which output folders it takes at its start."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from transformers import Seq2SeqTrainer

from petx import _memory
from petx.errors import UserError
from petx.train import stages, stopping, vlpet
from petx.train.run import Run
from petx.train.trainer import PetTrainer


@pytest.fixture
def made(tmp_path):
    """``made(flags...)``: a run in one folder, of which nothing was done."""
    return lambda *flags: Run(vlpet.RECIPE, vlpet.arguments.parse(["--output_dir", str(tmp_path / "out"), *flags]))


def begun(run, **changes):
    """The note of ``run``, as it writes it, with ``changes``; None leaves a setting out."""
    run.out.mkdir(exist_ok=True)
    values = dataclasses.asdict(run.settings) | changes
    note = json.dumps({name: value for name, value in values.items() if value != "left out"})
    (run.out / stages.SETTINGS).write_text(note)


# ---- signals ----


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_ends_a_run_in_words(made, monkeypatch, capsys, number, usual_signals):
    run, before = made(), signal.getsignal(number)
    monkeypatch.setattr(run, "execute", lambda: os.kill(os.getpid(), number))
    assert run.main() == 128 + number
    said = capsys.readouterr().out
    assert f"Stopped by {signal.Signals(number).name}. " in said and f"is in {run.out}; --resume goes on" in said
    assert signal.getsignal(number) is before


def test_ctrl_c_ends_a_run_in_words(made, monkeypatch, capsys, usual_signals):
    run = made()
    monkeypatch.setattr(run, "execute", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run.main() == 130
    assert "\nInterrupted. What was finished" in capsys.readouterr().out


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_signal_that_is_ignored_or_handled_stays_so(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with stopping.as_interruption():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_takes_no_signals():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stopping.as_interruption():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_forked_reader_dies_of_the_signal_itself():
    with stopping.as_interruption():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


# ---- closed pipes ----


class Closed:
    def write(self, text):
        raise BrokenPipeError

    flush = write


def test_a_closed_output_is_told_on_the_other_one(made, monkeypatch, capsys):
    run = made()
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(run, "execute", lambda: print("a table"))
    assert run.main() == 1
    assert "The output was closed. What was finished" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", Closed())
    assert run.main() == 1  # nobody is left to be told


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_command_without_a_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    code = "from petx.cli import main; import sys; sys.exit(main(['train', 'vlpet', '--list']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert done.returncode != 0 and "Traceback" not in done.stderr


def test_only_a_full_disk_is_told_as_one(made, monkeypatch):
    run = made()

    def fails(text):
        raise OSError(text)

    monkeypatch.setattr(run, "execute", lambda: fails("[Errno 28] No space left on device"))
    with pytest.raises(UserError, match="the disk is full: .* --resume goes on from there"):
        run.main()
    monkeypatch.setattr(run, "execute", lambda: fails("another"))
    with pytest.raises(OSError, match="^another$"):
        run.main()


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nx"), RuntimeError("DefaultCPUAllocator: x")]
)
def test_a_full_memory_is_told_as_one(made, monkeypatch, error):
    run = made()

    def fails(error):
        raise error

    monkeypatch.setattr(run, "execute", lambda: fails(error))
    with pytest.raises(
        UserError, match="^the memory is full: [^\n]+ A smaller batch_size or eval_batch_size takes less$"
    ):
        run.main()
    monkeypatch.setattr(run, "execute", lambda: fails(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="^another$"):
        run.main()


@pytest.mark.parametrize("said", ["(pid(s) 7) exited unexpectedly", "(pid 7) is killed by signal: Killed."])
def test_a_reading_process_that_is_killed_is_told(monkeypatch, said):
    reading = object.__new__(PetTrainer)

    def train(self, *args):
        raise RuntimeError(f"DataLoader worker {said}")

    monkeypatch.setattr(Seq2SeqTrainer, "train", train)
    with pytest.raises(UserError, match=r"workers: a process that reads .*7\) .*--resume goes on from it"):
        reading.train()


def test_the_memory_is_what_a_container_may_take(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "LIMITS", ())
    whole = _memory.memory()
    monkeypatch.setattr(_memory, "LIMITS", (str(tmp_path / "max"), str(tmp_path / "none")))
    for text, wanted in (("4096\n", 4096), ("max\n", whole), ("", whole)):
        (tmp_path / "max").write_text(text)
        assert _memory.memory() == wanted


# ---- output folders ----


def test_an_empty_folder_is_taken_and_a_run_only_by_resume(made):
    stages.check_output(made())
    begun(made())
    with pytest.raises(UserError, match=r"output_dir .*out already holds a run: add --resume"):
        stages.check_output(made())
    stages.check_output(made("--resume"))


@pytest.mark.parametrize("part", ["host", "host-training", "vlpet/seed-0", "lora/seed-12"])
@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_parts_of_a_run_without_its_settings_are_refused(made, part, resume):
    (made().out / part).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"has no settings\.json but holds .*{part} of another run: choose another"):
        stages.check_output(made(*resume))


@pytest.mark.parametrize("name", ["vlpet/seed-0-old", "vlpet/seed-best", "vlpet/seed-01", "vlpet/seed--1", "mine"])
def test_what_is_not_a_runs_is_left_alone(made, name):
    (made().out / name).mkdir(parents=True)
    stages.check_output(made())
    begun(made())
    stages.check_output(made("--resume"))
    assert all(seed == 0 for _, seed in stages.jobs(made("--resume")))


def test_a_run_resumes_with_its_own_settings(made):
    begun(made())
    with pytest.raises(UserError, match=r"was begun with rank=24, not 8; resume with the same"):
        stages.check_output(made("--resume", "--rank", "8"))
    stages.check_output(made("--resume", "--seeds", "2", "--arms", "vlpet"))  # in these it may differ
    with pytest.raises(UserError, match=r"was begun with lr_lora=0.003, not 0.5"):  # an arm of that run
        stages.check_output(made("--resume", "--arms", "lora", "--lr_lora", "0.5"))
    stages.check_output(made("--resume", "--arms", "bitfit", "--lr_bitfit", "0.5"))  # no arm of it read this


def test_a_setting_that_an_older_run_did_not_have_was_at_its_default(made):
    begun(made(), encoder_places="left out", placement="left out", gone=3)
    stages.check_output(made("--resume"))
    with pytest.raises(UserError, match="was begun with placement='sequential', not 'parallel'"):
        stages.check_output(made("--resume", "--placement", "parallel"))


@pytest.mark.parametrize("content", ["", "[]", "{", "\0\0"])
def test_damaged_notes_of_a_run_are_named(made, content):
    begun(made())
    result = made().out / "vlpet" / "seed-0" / stages.RESULT
    result.parent.mkdir(parents=True)
    result.write_text(content)
    with pytest.raises(UserError, match=r"seed-0/result\.json is damaged.*; remove it to train this arm again"):
        stages.check_output(made("--resume"))
    (made().out / stages.SETTINGS).write_text(content)
    with pytest.raises(UserError, match=r"out/settings\.json is damaged"):
        stages.check_output(made("--resume"))


def test_a_host_that_is_gone_or_damaged_is_told(made):
    begun(made())
    host = made().out / "host"
    host.mkdir()
    for name, content, message in (
        ("config.json", "{}", "the host's config.json is not in"),
        ("model.safetensors", "cut", "the host's weights, model.safetensors, are not in"),
        ("", "", r"the host's model\.safetensors in .* is damaged"),
    ):
        with pytest.raises(UserError, match=message + r".*remove the folder 'host' and all arms to begin again"):
            stages.check_output(made("--resume"))
        if name:
            (host / name).write_text(content)

"""The command line: finding commands, errors, and ``petx info``."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers.utils import logging

import petx
from petx import _python, cli, ops
from petx._quiet import quiet_transformers
from petx.errors import UserError

COMMANDS = cli.command_names()


def test_help_lists_every_command_with_its_line(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert {"info", "train"} <= set(COMMANDS)
    for name in COMMANDS:
        line = cli.help_line(name)
        assert line.endswith(".") and f"{name}  " in text and line in text
    assert "``" not in text


def test_no_command_prints_help(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.slow
def test_a_new_python_looks_for_no_modules_where_it_is_started(tmp_path):
    """As runs of a study are, and the certification of a card."""
    (tmp_path / "random.py").write_text("raise SystemExit('looked here')")
    command = _python.command("petx.cli", "--version")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"petx {petx.__version__}", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second is the C locale's
def test_a_letter_that_the_output_lacks_ends_nothing(monkeypatch, errors):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", errors))
    monkeypatch.setattr(cli, "_run_command", lambda name, arguments, names: print("\u03ba", flush=True) or 0)
    assert cli.main(["info"]) == 0 and written.getvalue() == b"?\n"


def test_an_output_without_room_is_told():
    command = _python.command("petx.cli", "data", "list")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "petx: error: the output: No space left on device\n")


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"petx {petx.__version__}\n"


@pytest.mark.parametrize(("name", "hint"), [("inof", "did you mean 'info'?"), ("xyzzy", "there are: ")])
def test_unknown_command(capsys, name, hint):
    assert cli.main([name, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"petx: error: unknown command {name!r}; {hint}")


def test_user_error_is_one_line_and_exit_code_2(capsys, monkeypatch):
    from petx.commands import info

    def fail(args):
        raise UserError("rank must be positive, got -1")

    monkeypatch.setattr(info, "run", fail)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "petx: error: rank must be positive, got -1\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    from petx.commands import info

    monkeypatch.setattr(info, "run", lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])


def test_info_agrees_with_the_library(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["petx"] == petx.__version__ and facts["torch"] == torch.__version__
    assert facts["library"] == (None if ops._C is None else ops._C.build_info())
    for stem, reasons in facts["kernel_absent_reason"].items():
        assert reasons == {device: ops.why_absent(stem, device) for device in ("cpu", "cuda")}
    assert "gated_adapter" in facts["kernel_absent_reason"]


@pytest.mark.skipif(ops._C is None, reason="needs the compiled library")
def test_info_in_words(capsys):
    assert cli.main(["info"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    info = ops._C.build_info()
    assert info["cpu_variant"] in info["cpu_variants"] and info["cpu_variant"] in lines["CPU kernels"]
    assert lines["gated_adapter, cpu"].strip() == "compiled kernel"
    if not info["cuda"]:
        assert info["cuda_absent_reason"] and info["cuda_absent_reason"] in lines["CUDA kernels"]
        assert info["cuda_absent_reason"] in lines["gated_adapter, cuda"]


def test_info_without_the_compiled_library():
    environment = os.environ | {"PETX_DISABLE_KERNELS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "petx", "info"], env=environment, capture_output=True, text=True, check=True
    )
    assert "not in use: PETX_DISABLE_KERNELS=1 is set" in done.stdout
    assert "reference, because PETX_DISABLE_KERNELS=1 is set" in done.stdout


def test_transformers_warns_again_after_a_failure():
    with pytest.raises(OSError, match="no such file"), quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        raise OSError("no such file")
    assert logging.get_verbosity() == logging.WARNING

"""The command line: help, exit codes, and one line instead of a traceback."""

import argparse
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from speechclip_plus_cli import main as cli


@pytest.fixture
def command(monkeypatch):
    """Install a command called "probe" whose behaviour the test gives as a function of its arguments."""

    def install(run):
        module = types.ModuleType("speechclip_plus_cli.probe")
        module.add_arguments = lambda parser: parser.add_argument("--number", type=int, default=0)
        module.run = run
        monkeypatch.setitem(sys.modules, "speechclip_plus_cli.probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", "a probe")

    return install


def raising(error):
    def run(args):
        raise error

    return run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_worker_has_no_handler_that_could_come_too_late(command):
    """A Python handler does not run while its thread waits in C for a lock that nobody gives."""

    def run(args):
        child = os.fork()
        if child == 0:
            os._exit(0 if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    command(run)
    assert cli.main(["probe"]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_killed_command_unwinds_and_its_forked_workers_just_end(command, capsys):
    def run(args):
        child = os.fork()
        if child == 0:  # a worker that swallows whatever is raised in it
            while True:
                try:
                    time.sleep(20)
                    os._exit(0)
                except BaseException:
                    continue
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)

    command(run)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_the_exit_code_is_the_commands(command):
    command(lambda args: args.number)
    assert cli.main(["probe", "--number", "0"]) == 0
    assert cli.main(["probe", "--number", "3"]) == 3


@pytest.mark.parametrize("error", [ValueError("a.wav: too\nshort"), FileNotFoundError("a.wav: too short")])
def test_an_expected_error_is_one_line_and_exit_code_1(command, capsys, error):
    command(raising(error))
    assert cli.main(["probe"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: a.wav: too short\n" and captured.out == ""


@pytest.mark.parametrize("error", [KeyError("speed"), RuntimeError("no"), ValueError()])
def test_an_unexpected_error_is_one_line_with_its_type_and_the_way_to_see_more(command, capsys, error):
    command(raising(error))
    assert cli.main(["probe"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {type(error).__name__}") and "--traceback" in err and err.count("\n") == 1


def test_a_traceback_can_be_asked_for(command):
    command(raising(KeyError("speed")))
    with pytest.raises(KeyError):
        cli.main(["--traceback", "probe"])


@pytest.mark.parametrize(
    "arguments", [[], ["no-such-command"], ["probe", "--no-such-option"], ["probe", "--number", "x"], ["--nonsense"]]
)
def test_wrong_usage_is_one_line_and_exit_code_2(command, capsys, arguments):
    command(lambda args: 0)
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "--help" in err


def test_an_interruption_is_exit_code_130(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_help_lists_the_commands_and_the_commands_own_arguments(command, capsys):
    command(lambda args: 0)
    assert cli.main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in cli.COMMANDS)
    assert cli.main(["probe", "--help"]) == 0
    assert "--number" in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_listed_command_exists(name):
    module = cli.command_module(name)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert callable(module.run)


def test_a_training_stands_for_the_model_in_it_when_it_is_pushed(tmp_path, capsys):
    model = tmp_path / "runs" / "first" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "runs" / "first" / "log.txt").write_text("")
    assert cli.main(["push", str(tmp_path / "runs" / "first"), "ann/first", "--dry-run"]) == 0
    assert "config.json" in (out := capsys.readouterr().out) and "log.txt" not in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_commands_help_imports_nothing_that_it_runs_with(name):
    script = """
import sys
for package in ("torch", "transformers", "datasets", "speechclip_plus"):
    sys.modules[package] = None  # importing it raises
from speechclip_plus_cli.main import main
assert main([sys.argv[1], "--no-such-option"]) == 2
sys.exit(main([sys.argv[1], "--help"]))
"""
    done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"speechclip-plus {name}" in done.stdout, done.stderr


def test_help_of_the_program_imports_no_command(capsys, monkeypatch):
    monkeypatch.setattr(cli, "import_module", raising(AssertionError("imported")))
    assert cli.main(["--help"]) == 0
    assert "usage:" in capsys.readouterr().out


def test_names_from_files_cannot_write_to_the_terminal(command, capsys):
    command(raising(ValueError("bad\x1b[31m name \x07" + "x" * 5000)))
    assert cli.main(["probe"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(r"error: bad\x1b[31m name \x07xxx") and len(err) < 1100


def test_a_command_says_what_is_loaded_before_the_silence(command, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    command(lambda args: print("the command's own", file=sys.stderr) or 0)
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr().err.splitlines() == ["Loading PyTorch and transformers ...", "the command's own"]


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["evalute"]) == 2
    assert "did you mean 'evaluate'?" in capsys.readouterr().err

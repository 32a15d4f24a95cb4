"""The command itself: help, shell completion, exit codes, and what is missing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pgdbpool.cli.app import app

from .command import COMMAND, environment, run

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def test_without_a_command_it_shows_what_there_is() -> None:
    done = run()
    assert done.code in (0, 2)  # click has changed its mind
    for name in COMMANDS:
        assert name in done.out + done.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = run(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"pgdbpool {name}" in done.out
    assert "--json" in done.out or name == "status"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo", "status"}))
def test_help_ends_with_examples_and_tells_the_exit_codes(name: str) -> None:
    lines = [line.strip(" │") for line in run(name, "--help").out.splitlines()]
    assert any(line.startswith(f"pgdbpool {name}") for line in lines)
    assert any("Exit code" in line for line in lines)


@pytest.mark.parametrize("arguments", [["nonsense"], ["check", "--nonsense"], ["check", "x.toml", "--processes", "0"]])
def test_a_wrong_command_line_is_exit_code_2_and_no_traceback(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments", [[], ["check", "pool.toml"], ["bench", "--threads"], ["top"], ["events"], ["top", "shop"], ["demo"]]
)
def test_a_url_in_the_wrong_place_is_not_repeated(arguments: list[str]) -> None:
    done = run(*arguments, "postgresql://app:gehe1m@db1/app?password=gehe1m")
    assert (done.code, done.out) == (2, "")
    assert done.err
    assert "gehe1m" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "host=h password=gehe1m"],
        ["check", "host=h", "password=gehe1m"],
        ["check", "app:gehe1m@db1/app"],
        ["check", "pool.toml", "gehe1m"],
        ["check", "pool.toml", "--pass=gehe1m"],
        ["bench", "password=gehe1m"],
        ["bench", "--password=gehe1m", "postgresql://h/db"],
        ["password=gehe1m"],
        ["top", "password=gehe1m"],
        ["events", "host=h", "password=gehe1m"],
        ["status", "password=gehe1m"],
    ],
)
def test_nor_is_a_connection_string(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err
    assert "gehe1m" not in done.err


def test_a_psycopg_without_libpq_is_told_in_one_line() -> None:
    # As where neither the wheel with libpq nor the system's is installed: the implementation that is asked for fails.
    done = run("check", "postgresql://app@127.0.0.1/app", PSYCOPG_IMPL="c")
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert "pip install 'pgdbpool[binary]'" in done.err


@pytest.fixture
def on_path(tmp_path: Path) -> str:
    """A PATH on which `pgdbpool` is the command of this environment."""
    command = tmp_path / "pgdbpool"
    command.write_text(f"#!/bin/sh\nexec '{COMMAND[0]}' -c 'from pgdbpool.cli import main; main()' \"$@\"\n")
    command.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here: apt-get install bash")
def test_bash_completes_commands_and_options(on_path: str) -> None:
    script = """
    eval "$(_PGDBPOOL_COMPLETE=source_bash pgdbpool)"
    ask() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        $(complete -p pgdbpool | sed 's/.*-F \\([^ ]*\\).*/\\1/') pgdbpool "${@: -1}"
        echo "${COMPREPLY[@]}"
    }
    ask pgdbpool ch
    ask pgdbpool check --pro
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment(PATH=on_path), check=False
    )
    assert done.stdout.split() == ["check", "--processes"], done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here: apt-get install bash")
def test_completion_is_installed_in_the_users_own_shell(on_path: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    env = environment(PATH=on_path, HOME=str(home))
    line = "pgdbpool --install-completion; true"  # the shell is found out by the parent process
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=env, check=False)
    assert "completion installed" in done.stdout, done.stdout + done.stderr
    assert ".bash_completions" in (home / ".bashrc").read_text()

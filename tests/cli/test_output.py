"""What is shown, and what happens where nobody reads it."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pocketdiff.cli import console, run
from pocketdiff.cli.output import Output, visible
from pocketdiff.folder import RunFolder
from tests.cli.helpers import spawn, train_words

posix = pytest.mark.skipif(os.name != "posix", reason="pipes, descriptors and terminals are POSIX's")
PROGRAM = [sys.executable, "-m", "pocketdiff.cli"]
LONG = ("--images", "40000", "--checkpoint-every", "1000000", "--pictures-every", "9999", "--gif-steps", "2")


# Unprintable characters


def test_unprintable_characters_are_shown_as_escapes(capsys) -> None:
    strange, shown = "a\x1b[31mb\r\x9b\u202e é\nc", r"a\x1b[31mb\r\x9b\u202e é" + "\nc"
    assert visible(strange) == shown
    assert visible("\udc80") == r"\udc80", "a byte of a path that is not UTF-8"
    console.show_messages()
    console.say(strange)
    console.warn(strange)
    assert run([strange]) == 2
    assert run(["info", strange]) == 2
    out, error = capsys.readouterr()
    assert out == f"{shown}\n"
    assert error.startswith(f"pocketdiff: {shown}\n")
    assert not {"\x1b", "\r", "\x9b", "\u202e"} & set(error)


def test_the_bar_shows_brackets_and_escapes_of_a_name_as_they_are(monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    bar = console.Bar()
    bar.show("[/x] \x1b]0;owned", 1, 10, "[red] \x1b")
    screen = Console(width=100, force_terminal=False)
    screen.print(bar.progress.make_tasks_table(bar.progress.tasks))
    line = capsys.readouterr().out
    assert line.startswith(r"[/x] \x1b]0;owned ")
    assert line.rstrip().endswith(r" 10%, [red] \x1b")


def test_info_shows_a_strangers_text_as_escapes(finished: Path, capsys, monkeypatch) -> None:
    from pocketdiff.model import ImageModel

    facts = ImageModel.facts
    monkeypatch.setattr(ImageModel, "facts", lambda self: facts(self) | {"trained on": "sha256 \x1b[2J"})
    capsys.readouterr()
    assert run(["info", str(finished)]) == 0
    out = capsys.readouterr().out
    assert r"sha256 \x1b[2J" in out
    assert "\x1b" not in out


# Streams


@pytest.fixture
def pipe() -> Iterator[tuple[int, Any]]:
    """The end to read from, and a stream to write to."""
    reader, writer = os.pipe()
    with open(writer, "w") as stream:  # noqa: PTH123 (a descriptor)
        yield reader, stream


@posix
def test_a_stream_without_a_reader_drops_what_is_written(pipe) -> None:
    reader, stream = pipe
    output = Output(stream)
    print("read", file=output, flush=True)
    assert os.read(reader, 99) == b"read\n"
    os.close(reader)
    for _ in range(2):
        print("dropped", file=output, flush=True)
    os.write(stream.fileno(), b"dropped as well")
    assert output.fault is None, "nobody misses it"
    assert not output.isatty()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full device is Linux's")
def test_a_stream_on_a_full_disk_remembers_the_fault() -> None:
    with Path("/dev/full").open("w") as stream:
        output = Output(stream)
        print("lost", file=output, flush=True)
        print("lost", file=output, flush=True)
        assert output.fault is not None
        assert output.fault.strerror == "No space left on device"


@posix
@pytest.mark.parametrize(
    ("script", "status", "error"),
    [
        ('exec "$@" --version', 0, ""),
        ('exec "$@" --version >&-', 0, ""),
        ('exec "$@" --version <&- >&- 2>&-', 0, ""),
        ('exec "$@" fly 2>&-', 2, ""),
        ('{ sleep 0.2; "$@" --help; echo $? >&2; } | true', 0, "0\n"),
        ('exec "$@" --version >/dev/full', 1, "pocketdiff: standard output: No space left on device\n"),
    ],
)
def test_the_status_says_what_became_of_the_work(script: str, status: int, error: str) -> None:
    done = subprocess.run(["sh", "-c", script, "sh", *PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, error)


@posix
def test_no_file_gets_the_number_of_a_closed_output() -> None:
    code = (
        "import os, sys; from pocketdiff.cli.output import protect; protect(); print('dropped');"
        "sys.exit(os.open('/dev/null', os.O_RDONLY) < 3)"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, check=False).returncode == 0


@posix
def test_an_ascii_terminal_shows_escapes_and_costs_no_file(
    images: Path, file: Path, cache: Path, tmp_path: Path
) -> None:
    words = ["evaluate", str(images), "--data", str(file), "--json", str(tmp_path / "score.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert r"Fr\xe9chet distance" in done.stdout
    assert json.loads((tmp_path / "score.json").read_text())


# Signals


@posix
def test_a_signal_saves_where_the_readers_are_gone(tiny_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with spawn(train_words(tiny_file, out, *LONG)) as process:
        assert process.stdout.readline().startswith("training on")
        process.stdout.close()
        process.stderr.close()
        while not RunFolder(out).metrics.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
    assert RunFolder(out).saved_checkpoints()


@posix
def test_a_terminal_that_is_closed_ends_a_run_safely(tiny_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # These tests may run under nohup.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [*PROGRAM, *train_words(tiny_file, out, *LONG)], environment)
    while not RunFolder(out).metrics.exists():
        os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert RunFolder(out).saved_checkpoints()


@posix
@pytest.mark.parametrize("ignored", [False, True])
def test_a_lost_terminal_stops_work_unless_the_signal_is_ignored(ignored: bool, capfd) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with console.Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested != ignored
    finally:
        signal.signal(signal.SIGHUP, before)

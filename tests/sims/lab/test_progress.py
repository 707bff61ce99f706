"""Progress: a live bar on a terminal, a plain line every 30 seconds elsewhere, by a clock that the test turns."""

import io
from pathlib import Path

import pytest

from sims.lab.progress import duration, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Hand:
    """A clock turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drive(stream: io.StringIO, steps: int, seconds: float) -> str:
    clock = Hand()
    with progress(steps, "trials [d]", stream=stream, clock=clock) as bar:
        for _ in range(steps):
            clock.now += seconds
            bar.advance()
    return stream.getvalue()


def test_plain_lines_come_every_thirty_seconds() -> None:
    lines = drive(io.StringIO(), 10, 12.0).splitlines()
    assert lines == [
        "trials [d]: 3/10, 5/min, 1 min 24 s left",  # at 36 s
        "trials [d]: 6/10, 5/min, 48 s left",  # at 72 s
        "trials [d]: 9/10, 5/min, 12 s left",  # at 108 s
        "trials [d]: 10/10 in 2 min 00 s",
    ]


def test_the_end_is_told_once() -> None:
    assert [line.split(",")[0] for line in drive(io.StringIO(), 2, 40.0).splitlines()] == [
        "trials [d]: 1/2",
        "trials [d]: 2/2 in 1 min 20 s",
    ]


def test_a_short_piece_of_work_is_one_plain_line() -> None:
    assert drive(io.StringIO(), 5, 0.5) == "trials [d]: 5/5 in 2.5 s\n"


def test_a_terminal_has_the_live_bar_and_no_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = drive(Terminal(), 10, 12.0)
    assert "trials [d]" in shown
    assert "10/10" in shown
    assert "\x1b[" in shown
    assert "10/10 in 2 min" not in shown


def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = drive(Terminal(), 10, 12.0)
    assert "\x1b" not in shown
    assert shown.endswith("trials [d]: 10/10 in 2 min 00 s\n")


def test_any_text_stream_will_do(tmp_path: Path) -> None:
    class Plain:
        """Neither a TextIO nor a StringIO: what a test runner or a notebook puts in the place of stderr."""

        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str, /) -> None:
            self.text += text

        def flush(self) -> None:
            pass

        def isatty(self) -> bool:
            return False

    plain = Plain()
    with open(tmp_path / "log", "w") as file:
        for stream in (plain, file):
            with progress(1, "t", stream=stream, clock=Hand()) as bar:
                bar.advance()
    assert plain.text == (tmp_path / "log").read_text() == "t: 1/1 in 0.0 s\n"


def test_steps_found_done_are_no_speed_and_notes_stay() -> None:
    clock, stream = Hand(), io.StringIO()
    with progress(100, "t", stream=stream, clock=clock) as bar:
        bar.skip(80)
        assert bar.rate() is None
        clock.now += 31
        bar.advance(4, note="1 failed")
        clock.now += 31
        bar.advance(4)
    assert stream.getvalue().splitlines() == [
        "t: 84/100, 7.74/min, 2 min 04 s left, 1 failed",
        "t: 88/100, 7.74/min, 1 min 33 s left, 1 failed",
        "t: 88/100 in 1 min 02 s, 1 failed",
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_an_exception_passes_and_what_was_done_is_said(stream: type[io.StringIO]) -> None:
    out = stream()

    def interrupted() -> None:
        with progress(9, "t", stream=out, clock=Hand()) as bar:
            bar.advance(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "2/9" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words

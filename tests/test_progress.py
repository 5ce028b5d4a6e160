"""What long work says about itself."""

import sys

import pytest

from msg3d_fast import progress


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_plain_lines_come_at_intervals_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(100, 200, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.Progress("training", 8, done=4) as bar:
        for _ in range(4):
            bar.advance(fields="epoch 2/2")
        bar.say("done")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "training: 6/8  epoch 2/2  12s left",
        "training: 8/8  epoch 2/2  0s left",
        "done",
    ]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with progress.Progress("training", 2) as bar:
        bar.advance()
        bar.say("epoch 1")
        bar.advance(fields="epoch 2/2")
    text = capsys.readouterr().out
    assert "epoch 1\n" in text
    assert "2/2" in text


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("training", 1, quiet=True, interval=0) as bar:
        bar.advance()
        bar.say("done")
    assert capsys.readouterr().out == ""

"""Progress in a log: lines at a steady interval, with the time that is left."""

import pytest

from dmformer.utils import display


def test_lines_of_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 29.0, 31.0, 32.0, 62.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    lines = display.LogLines()
    for done in (10, 20, 41, 42, 72):
        lines.step("epoch 1/2", done, 1010, "loss 0.500")
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/2: 41 of 1,010  loss 0.500  16 min left",
        "epoch 1/2: 72 of 1,010  loss 0.500  16 min left",
    ]


def test_tracked_items_are_all_given_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "LOG_SECONDS", 0.0)
    assert list(display.track([1, 2, 3], "reading")) == [1, 2, 3]
    told = capsys.readouterr().err.splitlines()
    assert [line.rsplit("  ", 1)[0] for line in told] == ["reading: 1 of 3", "reading: 2 of 3"]
    assert list(display.track(iter([1, 2]), "reading")) == [1, 2]
    assert capsys.readouterr().err.splitlines() == ["reading: 1"]
    assert list(display.track([1, 2, 3], "reading", enabled=False)) == [1, 2, 3]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(45.2, "45 s"), (89, "89 s"), (720, "12 min"), (11_100, "3 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text

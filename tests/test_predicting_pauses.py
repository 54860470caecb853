"""A pause is put off while one more round makes it much shorter."""

from __future__ import annotations

from awesomeproxy.migrate.prediction import MOST_ROUNDS, Round, predict

MB = 1_000_000


def test_rounds_go_on_while_they_pay() -> None:
    """5 MB a second are written, 50 are carried: the pause is to be short, not only to fit."""
    left = 1000 * MB
    rounds: list[Round] = []
    while not rounds or predict(rounds, 100.0).do == "again":
        seconds = 0.2 + left / (50 * MB)
        rounds.append(Round(left, seconds, int(seconds * 5 * MB)))
        left = rounds[-1].pending
    assert [round(each.size / MB) for each in rounds] == [1000, 101]


def test_rounds_that_do_not_pay_are_not_made() -> None:
    """What is written is as much as can be carried, but it fits."""
    assert predict([Round(100 * MB, 5.0, 60 * MB)], 20.0).do == "hold"
    paying = [Round(100 * MB, 5.0, 40 * MB)]
    assert predict(paying * (MOST_ROUNDS - 1), 20.0).do == "again"
    assert predict(paying * MOST_ROUNDS, 20.0).do == "hold"  # but there is an end

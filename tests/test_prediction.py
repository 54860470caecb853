"""Whether a pause that begins now would be short enough."""

from __future__ import annotations

import pytest

from awesomeproxy.migrate.prediction import MOST_ROUNDS, PATIENCE, Round, predict, predict_all

MB = 1_000_000


def test_one_round_that_leaves_little_is_enough() -> None:
    """At 10 MB a second 50 MB are five seconds."""
    verdict = predict([Round(100 * MB, 10.0, 50 * MB)], 100.0)
    assert (verdict.do, verdict.predicted) == ("hold", 10.0)  # no round was ever shorter
    shorter = predict([Round(100 * MB, 10.0, 50 * MB), Round(50 * MB, 5.0, 1 * MB)], 100.0)
    assert (shorter.do, shorter.predicted) == ("hold", 5.0)


def test_a_first_round_says_nothing_of_how_short_one_can_be() -> None:
    """It has carried everything; so there is another, though nothing is left."""
    rounds = [Round(10_000 * MB, 1000.0, 0)]
    assert predict(rounds, 20.0).do == "again"
    rounds.append(Round(0, 0.5, 0))
    assert predict(rounds, 20.0).do == "hold"


def test_a_part_of_the_pause_is_kept_for_surprises() -> None:
    """Of 10 seconds the last round may take 6."""
    assert predict([Round(10 * MB, 1.0, 60 * MB)], 10.0).do == "hold"
    assert predict([Round(10 * MB, 1.0, 61 * MB)], 10.0).do == "again"


def test_rounds_that_gain_go_on() -> None:
    """However long the first one was."""
    left, rounds = 1000 * MB, [Round(2000 * MB, 200.0, 1000 * MB)]
    while (verdict := predict(rounds, 10.0)).do == "again":
        rounds.append(Round(left, left / (10 * MB), left // 2))
        left //= 2
    assert verdict.do == "hold"
    assert verdict.predicted <= 6.0
    assert len(rounds) > PATIENCE


@pytest.mark.parametrize("grows", [1.0, 1.5, 0.9])
def test_rounds_without_a_gain_are_refused(grows: float) -> None:
    """Three of them are enough, and one that gains begins the count anew."""
    rounds = [Round(1000 * MB, 100.0, 1000 * MB)]
    for _ in range(PATIENCE):
        assert predict(rounds, 10.0).do == "again"
        rounds.append(Round(rounds[-1].pending, 100.0, int(rounds[-1].pending * grows)))
    verdict = predict(rounds, 10.0)
    assert verdict.do == "refuse"
    assert f"after {len(rounds)} rounds" in verdict.why
    assert f"{rounds[-1].pending:,} bytes" in verdict.why
    assert f"{verdict.predicted:.1f} s of a pause that may last 10 s" in verdict.why
    assert "written to faster than it can be carried" in verdict.why
    rounds.append(Round(rounds[-1].pending, 50.0, rounds[-1].pending // 2))
    assert predict(rounds, 10.0).do == "again"


def test_there_is_an_end_even_if_each_round_gains_a_little() -> None:
    """Whoever writes like that would keep it busy for ever."""
    rounds = [
        Round(int(1000 * MB * left), 100.0 * left, int(1000 * MB * left * 0.79))
        for left in (0.79**number for number in range(MOST_ROUNDS))
    ]
    assert predict(rounds[:-1], 0.1).do == "again"
    assert predict(rounds, 0.1).do == "refuse"


@pytest.mark.parametrize("trickle", [0, 1, 100])
def test_a_pause_shorter_than_any_round_is_refused_for_what_it_is(trickle: int) -> None:
    """Hardly anything is written; but a round takes its time, whatever there is to carry."""
    rounds = [Round(50 * MB, 2.0, trickle)]
    while (verdict := predict(rounds, 0.001)).do == "again":
        seconds = 0.2 if len(rounds) % 2 else 0.25
        rounds.append(Round(trickle * (len(rounds) % 2), seconds, trickle))
    assert verdict.do == "refuse"
    assert len(rounds) <= PATIENCE + 2
    assert "a round takes that long, however little it carries" in verdict.why
    assert "0.200 s of a pause that may last 0.001 s" in verdict.why
    assert "written to faster" not in verdict.why


def test_rounds_that_carried_nothing_tell_no_rate() -> None:
    """All that is known is how long one takes."""
    assert predict([Round(0, 2.0, 500 * MB)], 10.0).predicted == 2.0
    assert predict([Round(5, 0.0, 500 * MB)], 10.0).predicted == 0.0


def test_what_is_carried_side_by_side_has_rates_of_its_own() -> None:
    """A few small files say nothing of how fast a database is."""
    files, database = Round(20_000, 1.0, 0), Round(0, 0.1, 8 * MB)
    assert predict_all([[files, database]], 10.0).do == "hold"
    slow = Round(10 * MB, 10.0, 9 * MB)
    verdict = predict_all([[slow, database]], 10.0)
    assert (verdict.do, verdict.predicted) == ("again", 10.0)
    verdict = predict_all([[slow, database]] * (PATIENCE + 1), 10.0)
    assert verdict.do == "refuse"
    assert f"{9 * MB:,} bytes" in verdict.why
    assert predict_all([[]], 10.0).do == "hold"

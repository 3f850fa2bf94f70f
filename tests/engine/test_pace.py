"""The time of a run, with a clock that is set by hand."""

from __future__ import annotations

import pytest

from detrkit.engine.pace import REPORT_SECONDS, Pace, Work, evaluations_after
from detrkit.utils.durations import duration, seconds_text, time_words

WORK = Work(steps=100, evaluations=4, step_images=8, evaluated_images=80, final_images=80)


class Clock:
    """A clock that stands still unless it is told to go."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def steps(pace: Pace, clock: Clock, seconds: float, count: int) -> None:
    for _ in range(count):
        clock.now += seconds
        pace.step(seconds)


def test_the_time_is_not_known_before_three_steps(clock):
    pace = Pace(clock=clock)
    pace.begin(0, WORK)
    steps(pace, clock, 2.0, 2)
    assert pace.left() is None and pace.words() == "4 s gone" and pace.forecast() is None
    steps(pace, clock, 2.0, 1)
    # 97 steps; 4 evaluations and the last one of 80 images at half the 0.25 s that an image takes in training
    assert pace.left() == pytest.approx(97 * 2 + 5 * 10 + REPORT_SECONDS)
    assert pace.forecast() == (
        "time: about 4 min in all, 6 s gone: still to do 97 steps of 2 s, 4 evaluations of about 10 s"
    )


def test_the_first_step_is_not_counted(clock):
    pace = Pace(clock=clock)
    pace.begin(0, WORK)
    steps(pace, clock, 30.0, 1)
    steps(pace, clock, 1.0, 9)
    assert pace.step_seconds == 1.0


def test_a_real_evaluation_replaces_the_estimate(clock):
    pace = Pace(clock=clock)
    pace.begin(0, WORK)
    steps(pace, clock, 2.0, 25)
    clock.now += 40
    pace.evaluation(40.0)
    assert pace.left() == pytest.approx(75 * 2 + 3 * 40 + 40 + REPORT_SECONDS)
    assert "3 evaluations of 40 s" in pace.forecast()


def test_a_machine_that_becomes_slower_shows(clock):
    pace = Pace(clock=clock)
    pace.begin(0, Work(10_000, 0, 8, 0))
    steps(pace, clock, 1.0, 500)
    steps(pace, clock, 3.0, 200)
    assert pace.left() == pytest.approx(9300 * 3 + REPORT_SECONDS)


def test_a_resumed_run_counts_what_it_took_before(clock):
    pace = Pace(clock=clock)
    clock.now += 5  # of imports, since this process began
    pace.went(600.0)
    pace.begin(0, WORK, steps_done=50, evaluations_left=2)
    steps(pace, clock, 2.0, 10)
    assert pace.gone == pytest.approx(625)
    assert pace.left() == pytest.approx(40 * 2 + 3 * 10 + REPORT_SECONDS)
    assert pace.words() == "10 min gone, about 2 min left (of 12 min)"


def test_the_second_phase_is_part_of_the_whole(clock):
    masks = Work(steps=40, evaluations=1, step_images=8, evaluated_images=80, final_images=80)
    pace = Pace([WORK, masks], clock=clock)
    pace.begin(0, WORK)
    steps(pace, clock, 2.0, 100)
    # the detector is trained: 4 evaluations, two endings, 40 steps and 1 evaluation for the masks
    assert pace.left() == pytest.approx(4 * 10 + 2 * (10 + REPORT_SECONDS) + 40 * 2 + 10)
    pace.begin(1, masks)
    steps(pace, clock, 4.0, 10)
    assert pace.left() == pytest.approx(30 * 4 + 2 * 20 + REPORT_SECONDS)


def test_a_budget_is_over_in_time_for_the_last_evaluation_and_the_report(clock):
    pace = Pace(budget=300.0, clock=clock)
    pace.begin(0, Work(10_000, 4, 8, 80, 80))
    assert not pace.over()
    steps(pace, clock, 2.0, 5)
    assert not pace.over()
    # 10 s for the epoch's evaluation, 10 for that of the best one, and the report
    clock.now = 1000 + 300 - 20 - REPORT_SECONDS - 2
    assert not pace.over()
    clock.now += 2
    assert pace.over() and not pace.used_up()
    clock.now += 25
    assert pace.used_up()


def test_a_budget_shorter_than_the_report_has_one_step(clock):
    pace = Pace(budget=5.0, clock=clock)
    pace.begin(0, WORK)
    assert not pace.over()
    steps(pace, clock, 1.0, 1)
    assert pace.over()


def test_the_words_of_a_budget_end_with_it(clock):
    pace = Pace(budget=120.0, clock=clock)
    pace.begin(0, Work(100_000, 0, 8, 0))
    steps(pace, clock, 2.0, 30)
    assert pace.words() == "60 s gone, about 60 s left (of 2 min)"


@pytest.mark.parametrize(
    ("epochs", "every", "done", "count"), [(10, 3, 0, 4), (9, 3, 0, 3), (10, 3, 3, 3), (10, 20, 0, 1), (4, 1, 4, 0)]
)
def test_evaluations_to_come(epochs, every, done, count):
    assert evaluations_after(epochs, every, done=done) == count


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (40, "40 s"),
        (119, "119 s"),
        (120, "2 min"),
        (720, "12 min"),
        (7500, "2.1 h"),
        (860_000, "10 days"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_elapsed_and_left_are_told_apart():
    assert time_words(720, 2460) == "12 min gone, about 41 min left (of 53 min)"
    assert [seconds_text(s) for s in (0.0512, 1.24, 20.4)] == ["0.051 s", "1.2 s", "20 s"]


def test_a_slow_first_step_does_not_end_a_run_whose_evaluation_was_measured():
    """The first step allocates memory; with evaluations estimated from it, a run of five minutes had one step."""
    work = Work(steps=53, evaluations=1, step_images=8, evaluated_images=200, final_images=200)
    for measured, over in ((None, True), (8.0, False)):
        clock = Clock()
        pace = Pace([work], gone=140.0, budget=300.0, report=45.0, clock=clock)
        pace.measured_evaluation = measured
        pace.begin(0, work)
        steps(pace, clock, 4.5, 1)
        assert pace.over() is over
    steps(pace, clock, 1.0, 90)
    assert pace.evaluation_seconds() == 8.0 and not pace.over()  # 234.5 s gone; two evaluations and the report: 61 s
    steps(pace, clock, 1.0, 5)
    assert pace.over()


def test_the_steps_that_fit_leave_time_for_evaluations_and_report(clock):
    pace = Pace(budget=500.0, clock=clock)
    pace.begin(0, WORK)
    steps(pace, clock, 2.0, 2)
    assert pace.fitting_steps() is None  # no estimate yet
    steps(pace, clock, 2.0, 18)
    pace.measured_evaluation = 20.0
    # 500 s, less 40 gone, report, best checkpoint and last evaluation; 80 steps with 3 evaluations on the way
    assert pace.fitting_steps() == int((500 - 40 - REPORT_SECONDS - 20 - 20) / (2 + 3 * 20 / 80)) == 149
    clock.now += 400
    assert pace.fitting_steps() == 3
    clock.now += 400
    assert pace.fitting_steps() == 0
    assert Pace(clock=clock).fitting_steps() is None

"""Speed leaves pauses out, the time that is left does not; lines come by steps and by time."""

import pytest

from imagen_jax.training.optimizer import OptimizerConfig, learning_rate_schedule
from imagen_jax.training.progress import LINE_SECONDS, Progress, position, progress_line

MEANS = {"loss": 0.5, "grad_norm": 1.25}


@pytest.fixture
def now():
    return [100.0]


def pause(progress, now, seconds):
    with progress.pause():
        now[0] += seconds


def test_speed_leaves_pauses_out(now):
    progress = Progress(50, 8, step=10, flops_per_step=4e9, peak=1e11, clock=lambda: now[0])
    now[0] += 5.0
    pause(progress, now, 2.0)
    speed = progress.report(20)
    assert speed["images_per_second"] == pytest.approx(16.0)
    assert speed["gflops_per_second"] == pytest.approx(8.0)
    assert speed["mfu"] == pytest.approx(0.08)
    assert speed["eta_seconds"] == pytest.approx(15.0)


def test_the_time_that_is_left_has_pauses_in_it_but_for_the_longest(now):
    progress = Progress(40, 8, clock=lambda: now[0])
    now[0] += 10.0
    for seconds in (100.0, 4.0, 6.0):  # the first compiles
        pause(progress, now, seconds)
    assert progress.speed(20)["eta_seconds"] == pytest.approx(20 * (10 / 20 + 10 / 20))


def test_a_line_is_due_after_the_first_step_and_after_a_minute_without_one(now):
    progress = Progress(50, 8, step=10, clock=lambda: now[0])
    assert progress.due(11)
    now[0] += 30.0
    assert len(progress.lines(11, MEANS, progress.speed(11))) == 1
    now[0] += LINE_SECONDS - 1
    assert not progress.due(12)
    now[0] += 1
    assert progress.due(13)
    # The first step warms up: the speed after it is that of the others.
    assert progress.speed(13)["images_per_second"] == pytest.approx(2 * 8 / LINE_SECONDS)


@pytest.mark.parametrize(
    ("device", "told"),
    [("CPU, 2 cores", "on this CPU, 2 cores: a GPU or TPU"), ("1 x L4", "on this 1 x L4: fewer")],
)
def test_days_are_told_once_and_not_from_the_first_step(now, device, told):
    progress = Progress(100_000, 8, device=device, clock=lambda: now[0])
    now[0] += 10.0
    assert len(progress.lines(1, MEANS, progress.speed(1))) == 1
    now[0] += 4.0
    _, warning = progress.lines(3, MEANS, progress.report(3))
    assert warning.startswith("warning: about 2.3 days are left ")
    assert told in warning
    now[0] += 4.0
    assert len(progress.lines(5, MEANS, progress.report(5))) == 1


def test_the_line_tells_speed_and_the_reference():
    means = MEANS | {"reference/loss": 0.4}
    speed = {"images_per_second": 12.0, "gflops_per_second": 99.6, "eta_seconds": 3725.0}
    line = progress_line(1200, 40_000, means, speed)
    expected = "loss 0.5000 (reference 0.4000) | grad 1.25 | 12.0 images/s | 100 GFLOP/s"
    assert line == f"step 1,200/40,000 | {expected} | 1:02:05 left"
    assert "MFU 41.0%" in progress_line(1, 2, means, speed | {"mfu": 0.41})
    assert "| 0:01:00 left" in progress_line(1, 2, means, speed | {"eta_seconds": 59.6})
    placed = progress_line(1, 2, means | {"epoch": 5.256, "learning_rate": 1e-4}, speed)
    assert placed.startswith("step 1/2 | epoch 5.26 | loss ")
    assert "| rate 1.0e-04 |" in placed


def test_the_learning_rate_is_that_of_the_steps_own_update():
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=4))
    rates = [position(step, rate)["learning_rate"] for step in range(1, 7)]
    assert rates == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_epochs_count_the_batches_that_were_left_out():
    rate = learning_rate_schedule(OptimizerConfig())
    assert position(6, rate, (), 3.0)["epoch"] == 2.0
    assert position(6, rate, ((2, 4),), 3.0)["epoch"] == 3.0
    assert "epoch" not in position(6, rate)  # a stream


def test_waiting_for_input_is_told_where_it_is_long(now):
    progress = Progress(50, 8, clock=lambda: now[0])
    for seconds in (0.1, 0.15):
        now[0] += 9.8 - seconds
        with progress.waiting():
            now[0] += seconds
        speed = progress.report(10)
        assert speed["input_wait"] == pytest.approx(seconds / 9.8)
    assert "waiting" not in progress_line(10, 50, MEANS, speed)
    with progress.waiting():
        now[0] += 5.0
    assert "| waiting for input 100% |" in progress_line(20, 50, MEANS, progress.speed(20))

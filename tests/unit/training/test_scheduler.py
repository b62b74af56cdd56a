from __future__ import annotations

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training.config_blocks import SchedulerConfig
from nemotron_kit.training.loop import learning_rate


def rates(train_iters: int, **fields) -> list[float]:
    config = SchedulerConfig(**fields)
    return [learning_rate(config, 1.0, step, train_iters) for step in range(train_iters)]


def test_warm_up_stable_decay() -> None:
    values = rates(100, lr_warmup_iters=10, lr_wsd_decay_iters=20, lr_wsd_decay_style="linear", min_lr=0.1)
    assert values[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert set(values[10:80]) == {1.0}
    assert values[80:] == pytest.approx([1.0 - 0.9 * n / 20 for n in range(20)])


def test_the_decay_is_a_fifth_of_the_run_when_nothing_is_said() -> None:
    values = rates(50)
    assert values[:41] == [1.0] * 41 and values[41] < 1


@pytest.mark.parametrize("shape", ["linear", "cosine", "minus_sqrt", "exponential"])
def test_every_shape_goes_from_the_peak_to_the_end(shape: str) -> None:
    config = SchedulerConfig(lr_wsd_decay_style=shape, lr_wsd_decay_iters=50, min_lr=0.01)
    values = [learning_rate(config, 1.0, step, 100) for step in range(101)]
    assert values[50] == 1.0 and values[100] == pytest.approx(0.01)
    assert values[50:] == sorted(values[50:], reverse=True)


def test_after_the_decay_the_rate_stays_low() -> None:
    assert rates(100, lr_decay_iters=60, min_lr=0.1)[60:] == [0.1] * 40


@pytest.mark.parametrize("style", ["linear", "cosine"])
def test_a_decay_without_a_stable_phase(style: str) -> None:
    values = rates(100, lr_decay_style=style, lr_warmup_iters=10)
    assert values[9] == 1.0 and values[10] == 1.0 and values[11] < 1.0 and values[-1] < 0.05


def test_constant() -> None:
    assert rates(30, lr_decay_style="constant", lr_warmup_iters=2) == [0.5] + [1.0] * 29


def test_the_published_schedule() -> None:
    config = SchedulerConfig(lr_warmup_iters=334, lr_wsd_decay_iters=198682, min_lr=1e-5)
    ends = [learning_rate(config, 1e-3, step, 993410) for step in (0, 334, 794727, 794728, 993409)]
    assert ends == pytest.approx([1e-3 / 334, 1e-3, 1e-3, 1e-3, 1e-5], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"lr_decay_style": "WDS"}, r"scheduler\.lr_decay_style is 'WDS'; did you mean WSD"),
        ({"lr_wsd_decay_style": "cosin"}, "did you mean cosine"),
        ({"lr_warmup_iters": -1}, r"scheduler\.lr_warmup_iters is -1"),
    ],
)
def test_a_wrong_value_is_named(fields, error: str) -> None:
    with pytest.raises(UserError, match=error):
        SchedulerConfig(**fields).check()

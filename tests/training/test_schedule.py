"""Learning rates of the released code, which sets them after each iteration, by the index of that iteration."""

import pytest

from utils.config.schema import Train
from utils.engine.trainer import learning_rate_factor


def test_poly_starts_with_two_iterations_at_the_initial_rate():
    factors = [learning_rate_factor(Train(), i) for i in range(35000)]
    assert factors[:2] == [1, 1] and factors[2] == (1 - 1 / 35000) ** 0.9
    assert factors[-1] == pytest.approx((2 / 35000) ** 0.9) and factors == sorted(factors, reverse=True)


def test_drop_comes_after_the_iteration_that_it_names():
    drop = Train(schedule="drop", decrease_lr=1500)
    assert [learning_rate_factor(drop, i) for i in (0, 1499, 1500, 1501, 30000)] == [1, 1, 1, 0.1, 0.1]

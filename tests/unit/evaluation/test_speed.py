"""Speed with a clock that the test sets."""

import pytest

from trainer.evaluation.speed import speed


class Slow:
    """Takes the given seconds for each pass, the first one included."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.now, self.texts = seconds, 0.0, []

    def encode(self, texts: list[str], *, layers: int | None = None) -> None:
        self.texts.append(texts)
        self.now += self.seconds[len(self.texts) - 1]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [[0] * 5 for _ in texts]


def test_speed_is_the_median_of_three_passes_after_a_warm_up() -> None:
    model = Slow([60.0, 2.0, 9.0, 4.0])
    found = speed(model, ["a", "b", "a", "c"], clock=lambda: model.now)
    assert found == {"texts_per_second": 0.75, "tokens_per_second": 3.75, "texts": 3}
    assert model.texts == [["a", "b", "c"]] * 4


def test_few_texts_are_enough() -> None:
    model = Slow([1.0] * 4)
    found = speed(model, [str(number) for number in range(5_000)], clock=lambda: model.now)
    assert found["texts"] == len(model.texts[0]) == 128
    assert found["texts_per_second"] == pytest.approx(128.0)

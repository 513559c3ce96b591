"""Pictures are written while the network predicts the next ones, and errors of writing are not lost."""

import threading
import time

import pytest

import evaluate
from utils.commands import predict
from utils.scoring import segment
from utils.scoring.pictures import THREADS, WAITING, Background
from utils.scoring.predictions import Gallery
from utils.scoring.predictor import Predictor

PATIENCE = 60  # seconds that a picture waits for the next prediction


def test_all_calls_are_done_at_the_end_and_few_wait():
    done, unfinished = [], []

    def work(number: int) -> None:
        time.sleep(0.002)
        done.append(number)

    with Background() as background:
        for number in range(60):
            background.call(work, number)
            unfinished.append(number + 1 - len(done))
    assert sorted(done) == list(range(60)) and 1 < max(unfinished) <= WAITING


@pytest.mark.parametrize("calls", [1, 3 * WAITING])
def test_error_of_a_call_is_raised(calls):
    def fail(number: int) -> None:
        raise OSError(f"disk full at {number}")

    with pytest.raises(OSError, match="disk full at 0"), Background() as background:
        for number in range(calls):
            background.call(fail, number)


def test_error_of_the_context_wins_and_drops_calls_that_have_not_begun():
    begun = []

    def work() -> None:
        deadline = time.monotonic() + PATIENCE
        while not background.calls[-1].cancelled() and time.monotonic() < deadline:
            time.sleep(0.001)
        begun.append(time.monotonic() < deadline)
        raise OSError("later")

    def stop() -> None:
        for _ in range(WAITING):
            background.call(work)
        raise ValueError("own")

    with pytest.raises(ValueError, match="own"), Background() as background:
        stop()
    assert all(begun) and len(begun) <= THREADS and background.calls[-1].cancelled()


class SecondCall:
    """A function, and another one that waits for the second call of the first."""

    def __init__(self, first, then) -> None:
        self.first, self.then, self.calls, self.again = first, then, 0, threading.Event()

    def counted(self, *arguments, **options):
        self.calls += 1
        if self.calls == 2:
            self.again.set()
        return self.first(*arguments, **options)

    def waiting(self, *arguments, **options):
        if not self.again.wait(PATIENCE):
            raise TimeoutError("the next picture was not predicted meanwhile")
        return self.then(*arguments, **options)


def test_predict_writes_while_the_next_picture_is_predicted(command, city, source_run, tmp_path, monkeypatch):
    order = SecondCall(Predictor.segment, segment.write)
    monkeypatch.setattr(Predictor, "segment", lambda *arguments, **options: order.counted(*arguments, **options))
    monkeypatch.setattr(segment, "write", order.waiting)
    pictures = [str(path) for path in sorted((city / "gtav/images").glob("*.png"))[:3]]
    options = ["--save", str(tmp_path / "out")]
    assert predict.main(command(source_run.parent, "source_only", *pictures, *options)) == 0
    assert len(list((tmp_path / "out/overlay").glob("*.png"))) == 3


def test_evaluation_writes_while_the_next_picture_is_predicted(command, source_run, tmp_path, monkeypatch, capsys):
    order = SecondCall(Predictor.segment, Gallery.add)
    monkeypatch.setattr(Predictor, "segment", lambda *arguments, **options: order.counted(*arguments, **options))
    monkeypatch.setattr(Gallery, "add", lambda gallery, *arguments: order.waiting(gallery, *arguments))
    options = ["--weights", str(source_run), "--save", str(tmp_path / "out")]
    evaluate.main(command(tmp_path, "any", *options))
    assert len(list((tmp_path / "out/panels").rglob("*.png"))) == 3
    (speed,) = (line for line in capsys.readouterr().out.splitlines() if line.endswith(" pictures per second"))
    assert float(speed.split()[0]) > 0


def test_picture_that_cannot_be_written_stops_the_evaluation(command, source_run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/panels").write_text("a file where a folder is needed")
    with pytest.raises(OSError, match="panels"):
        evaluate.main(command(tmp_path, "any", "--weights", str(source_run), "--save", str(tmp_path / "out")))

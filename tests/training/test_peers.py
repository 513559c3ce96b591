"""Processes that disagree, do not come or end: which rank it is, and why. Here they are threads around one store."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist

from dataset.messages import DataError
from utils import peers
from utils.peers import DisagreementError, LostError, Peers


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(peers, "PATIENCE", 0.5)
    monkeypatch.setattr(peers, "SAY_EVERY", 0.1)


def each(*parts: Callable[[Peers], object], world_size: int | None = None, minutes: float = 1.0) -> list[object]:
    """What each rank's part gives or raises, all of them at once."""
    store, results = dist.HashStore(), [None] * len(parts)
    store.set_timeout(timedelta(seconds=5))

    def run(rank: int) -> None:
        try:
            results[rank] = parts[rank](Peers(store, rank, world_size or len(parts), minutes))
        except Exception as error:  # the result
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def transport_error() -> Exception:
    """As torch raises it where another process is gone; gloo's have no type."""
    try:
        dist.TCPStore("127.0.0.1", 1, timeout=timedelta(seconds=0.1))
    except dist.DistError as error:
        return error
    raise AssertionError("somebody listens at port 1")


def test_all_ranks_name_what_differs_and_where():
    facts = [{"train.lr": "0.1", "seed": "0"}, {"train.lr": "0.1", "seed": "0"}, {"train.lr": "0.2", "code": "x"}]
    raised = each(*[lambda p, own=own: p.compare(own) for own in facts])
    assert all(isinstance(error, DisagreementError) for error in raised)
    assert len({str(error) for error in raised}) == 1 and "rank 1" not in str(raised[0])
    expected = "rank 2: code is x there, None on rank 0; seed is None there, 0 on rank 0; train.lr is 0.2 there, 0.1"
    assert expected in str(raised[0])


def test_the_same_facts_pass_again_and_again():
    def twice(own: Peers) -> str:
        own.compare({"a": "1"})
        own.compare({"a": "2"})
        return "passed"

    assert each(twice, twice) == ["passed", "passed"]


def test_who_does_not_come_is_named(capsys):
    (error,) = each(lambda p: p.meet(), world_size=3, minutes=0.005)
    assert isinstance(error, LostError) and "rank(s) 1, 2 of 3 did not come within 0.005 minutes" in str(error)
    assert "rank 0: waiting for rank(s) 1, 2 of 3" in capsys.readouterr().out


def test_the_first_process_is_waited_for_until_it_ends():
    def first(own: Peers) -> Exception:
        return own.explain(DataError("a.png is damaged"))

    own, waiting = each(first, lambda p: p.wait_for_first())
    assert str(own) == "a.png is damaged"
    assert isinstance(waiting, LostError) and "rank 0 ended: a.png is damaged" in str(waiting)


def test_a_broken_connection_is_explained_by_who_ended_and_who_is_silent():
    ended, lost = each(
        lambda p: p.explain(DataError("a.png is damaged")), lambda p: p.explain(transport_error()), world_size=4
    )
    assert isinstance(ended, DataError) and isinstance(lost, LostError)
    assert "rank 0 ended: a.png is damaged" in str(lost) and "no sign of life from rank(s) 2, 3 of 4" in str(lost)


def test_an_error_of_our_own_is_not_blamed_on_the_others():
    (error,) = each(lambda p: p.explain(RuntimeError("shapes differ")), world_size=2)
    assert type(error) is RuntimeError and str(error) == "shapes differ"


def test_a_store_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(dist.HashStore, "check", lambda self, keys: threading.Event().wait(5))
    (error,) = each(lambda p: p.compare({}))
    assert isinstance(error, LostError) and "the first node does not answer any more" in str(error)

"""How the processes of a run find each other, compare what they were started with, and say who is missing.

All of it goes through the store that torchrun holds, without a process group: it works before there is one, between
processes that would not agree on one, and after it broke.
"""

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from dataset.failures import one_line
from dataset.messages import UserError, few

SAY_EVERY = 30.0  # seconds between two lines about who is waited for
POLL, RETRY = 0.05, 1.0  # seconds
PATIENCE = 10.0  # seconds: the store answers, and after a failure the others have said why they ended
HERE, ENDED = "here", "ended"  # first part of the keys that each process sets
TRANSPORT = (str(Path(dist.__file__).parent), str(Path(__file__).with_name("distributed.py")))  # code that waits


class DisagreementError(UserError, RuntimeError):
    """Processes that were started with different things; the message says with what, and which rank."""


class LostError(UserError, RuntimeError):
    """A process that is waited for in vain; the message says which rank.

    The exit status is that of a service that is not there (EX_UNAVAILABLE): the same command may go on from the last
    checkpoint as soon as it is.
    """

    status = 69


T = TypeVar("T")


class Store:
    """Torch's store, whose own calls wait a quarter of an hour where the link to it was cut.

    Raises:
        LostError: of each method: it does not answer.
    """

    def __init__(self, store: dist.Store) -> None:
        self.torch_store = store

    def set(self, key: str, value: str) -> None:
        self._answer(lambda: self.torch_store.set(key, value))

    def get(self, key: str) -> str:
        """The value of a ``key`` that is set."""
        return self._answer(lambda: self.torch_store.get(key)).decode()

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all of ``keys`` are set."""
        return self._answer(lambda: self.torch_store.check(list(keys)))

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Indices of the ``keys`` that are not set."""
        return [index for index, key in enumerate(keys) if not self.has([key])]

    def wait(self, keys: Sequence[str], seconds: float) -> bool:
        """Whether all of ``keys`` are set within ``seconds``."""
        until = time.monotonic() + seconds
        while not self.has(keys):
            if time.monotonic() > until:
                return False
            time.sleep(POLL)
        return True

    def _answer(self, call: Callable[[], T]) -> T:
        answers: list[T] = []
        errors: list[Exception] = []

        def ask() -> None:
            try:
                answers.append(call())
            except dist.DistError as error:
                errors.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if answers:
            return answers[0]
        raise LostError(f"the first node does not answer any more. {REMEDY}") from (errors[0] if errors else None)


class Peers:
    """The processes of a run, as one of them sees them.

    Args:
        minutes: before it is an error that another one does not come or answer.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, minutes: float) -> None:
        self.store, self.rank, self.world_size, self.minutes = Store(store), rank, world_size, minutes
        self._steps = 0  # comparisons and waits so far, alike on all ranks

    @classmethod
    def of_environment(cls, minutes: float) -> "Peers":
        """Those that torchrun describes in the environment. Raises LostError where its store does not answer."""
        hosts = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not hosts:
            wait_for_listener(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), minutes * 60, lambda: None)
        try:
            store, rank, world_size = next(rendezvous("env://", timeout=timedelta(minutes=minutes)))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives a restart
            return cls(dist.PrefixStore(f"attempt-{attempt}", store), rank, world_size, minutes)
        except dist.DistError as error:
            raise LostError(f"the first node does not answer: {one_line(error)}") from error

    def meet(self) -> None:
        """Wait until every process has come. Raises LostError where one has not, in ``minutes``."""
        meet(self.store, self.rank, self.world_size, self.minutes * 60, "rank")

    def compare(self, facts: Mapping[str, str]) -> None:
        """Compare ``facts`` (name: value) with those of the first process.

        Raises:
            DisagreementError: those of any process differ; alike on all processes.
            LostError: a process does not answer.
        """
        self._steps += 1
        stage, first = f"compare-{self._steps}", f"facts-{self._steps}"
        if self.rank == 0:
            self.store.set(first, json.dumps(dict(facts)))
        elif not self.store.wait([first], self.minutes * 60):
            raise LostError(f"no answer from {_some('rank', [0], self.world_size)}. {REMEDY}")
        theirs = json.loads(self.store.get(first))
        names = sorted(name for name in facts.keys() | theirs.keys() if facts.get(name) != theirs.get(name))
        found = [f"{name} is {facts.get(name)} there, {theirs.get(name)} on rank 0" for name in names]
        self.store.set(f"{stage}/{self.rank}", "; ".join(found))
        if not self.store.wait(self._keys(stage), self.minutes * 60):
            silent = _some("rank", self.store.missing(self._keys(stage)), self.world_size)
            raise LostError(f"no answer from {silent}. {REMEDY}")
        verdicts = [self.store.get(key) for key in self._keys(stage)]
        differing = [f"rank {rank}: {verdict}" for rank, verdict in enumerate(verdicts) if verdict]
        if differing:
            raise DisagreementError(
                f"the processes were not started with the same: {'. '.join(differing)}. Give every node the same files "
                "and the same command"
            )

    def wait_for_first(self) -> None:
        """Wait, however long, until the first process has come here too; an error of its own ends it by the store."""
        self._steps += 1
        key = f"first-{self._steps}"
        if self.rank == 0:
            self.store.set(key, "")
        while not self.store.wait([key], 1.0):
            if self.store.has([f"{ENDED}/0"]):
                raise LostError(f"rank 0 ended: {self._said(0)}")

    def explain(self, error: Exception) -> Exception:
        """Tell the others that this process ends by ``error``; returns what it should end by.

        That is ``error`` itself, or where it only says that the others cannot be reached, who is missing and why.
        """
        lost = _is_of_transport(error)
        try:
            self.store.set(f"{ENDED}/{self.rank}", "" if lost else one_line(error))
            if not lost:
                return error
            self.store.wait(self._keys(ENDED), PATIENCE)
            silent = self.store.missing(self._keys(ENDED))
            said = {rank: self._said(rank) for rank in range(self.world_size) if rank not in silent}
        except LostError as gone:
            return gone if lost else error
        reasons = [f"rank {rank} ended: {text}." for rank, text in said.items() if text]
        if silent:
            reasons.append(f"no sign of life from {_some('rank', silent, self.world_size)}. {REMEDY}")
        return LostError(" ".join(reasons) or f"the connection broke ({one_line(error)}). {REMEDY}")

    def _said(self, rank: int) -> str:
        return self.store.get(f"{ENDED}/{rank}")

    def _keys(self, stage: str) -> list[str]:
        return [f"{stage}/{rank}" for rank in range(self.world_size)]


CAUSES = "did the start there fail, are MASTER_ADDR and MASTER_PORT the same, does a firewall let it through?"
REMEDY = (
    "Was it killed (out of memory?), is its machine down, the link cut, or the wrong interface taken (set "
    "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME)? The same command goes on from the last checkpoint"
)


def wait_for_listener(address: str, port: int, seconds: float, say: Callable[[], None]) -> None:
    """Wait until somebody listens there; torch is asked after that, as no signal breaks its own attempts off, and it
    prints each with its stack.

    Args:
        say: called every half a minute.

    Raises:
        LostError: nobody does, within ``seconds``.
    """
    started = said = time.monotonic()
    while not _listens(address, port):
        now = time.monotonic()
        if now - started > seconds:
            raise LostError(
                f"the first node did not answer at {address}:{port} within {seconds / 60:g} minutes (timeout_minutes): "
                f"{CAUSES}"
            )
        if now - said > SAY_EVERY:
            said = now
            say()
        time.sleep(RETRY)


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=RETRY):
            return True
    except OSError:
        return False


def meet(store: Store, number: int, count: int, seconds: float, kind: str) -> None:
    """Wait until all ``count`` processes or nodes, of which this is ``number``, have come to the ``store``.

    Every half a minute a line says which of them are waited for.

    Raises:
        LostError: one has not come, in ``seconds``.
    """
    keys = [f"{HERE}/{kind}/{other}" for other in range(count)]
    store.set(keys[number], "")
    left = seconds
    while not store.wait(keys, min(left, SAY_EVERY)):
        left -= SAY_EVERY
        missing = _some(kind, store.missing(keys), count)
        if left <= 0:
            raise LostError(f"{missing} did not come within {seconds / 60:g} minutes (timeout_minutes): {CAUSES}")
        print(f"{kind} {number}: waiting for {missing}", flush=True)


def _some(kind: str, numbers: Iterable[int], count: int) -> str:
    """Processes or nodes, in words."""
    return f"{kind}(s) {few(numbers)} of {count}"


def _is_of_transport(error: Exception) -> bool:
    """Whether ``error`` comes from a message between processes: torch has no type for most of them."""
    frames = traceback.extract_tb(error.__traceback__)
    by_torch = isinstance(error, RuntimeError) and not isinstance(error, UserError)
    return isinstance(error, dist.DistError) or (
        by_torch and bool(frames) and frames[-1].filename.startswith(TRANSPORT)
    )

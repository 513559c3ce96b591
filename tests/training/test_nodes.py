"""Several nodes, as processes of one machine: what they disagree in, who is lost, and that nobody waits for ever."""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

import train_source_only
from tests.processes import ROOT, Forked, free_port, launched, until
from tests.training.test_distributed import losses

pytestmark = pytest.mark.slow(5)  # seconds

LOST = 69  # exit status
STARTED = "step 1 "
ENDLESS = ["train.num_steps=100000", "val.every=100000", "train.print_freq=1", "val.held_out=0"]


# Source only, whose second process is killed before its fourth step, once.
KILLED = """
import os, pathlib, signal
import train_source_only
from dataset.program import exit_after
from utils import distributed
from utils.engine.trainer import Trainer

step, once = Trainer.step, pathlib.Path(__file__).with_name("killed")

def killed(self):
    if self.state.step == 3 and distributed.rank() == 1 and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)

Trainer.step = killed
exit_after(train_source_only.main)
"""


@pytest.fixture
def nodes(fork) -> Callable[..., list[Forked]]:
    """``nodes([arguments of node 0], [of node 1], **variables)`` starts a launcher of one process on each node."""
    port = str(free_port())

    def start(*arguments: list[str], ports: tuple[str, str] = (port, port), **variables: str) -> list[Forked]:
        found = []
        for rank, own in enumerate(arguments):
            where = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[rank]}
            found.append(fork(launched, own, **where, NPROC="1", PYTHONPATH=str(ROOT), **variables))
        return found

    return start


def test_configurations_that_disagree_are_named_before_anything_else(fork_two, command, tmp_path):
    """These used to train with two learning rates, and to hang, as only one of them validates and has a head more."""
    keys = ["train.lr_encoder=0.1"], ["train.lr_encoder=0.2", "val.held_out=0", "model.use_aux=false"]
    for process in fork_two("train_source_only.py", *(command(tmp_path, "nodes", *own) for own in keys)):
        status, output = process.ended()
        assert status == 2 and "train_source_only.py: rank" in output
        for difference in ("train.lr_encoder is 0.2, but 0.1 on", "val.held_out is 0, but 3", "model.use_aux is"):
            assert f"rank 1: {difference}" in output or f"; {difference}" in output, output
    assert not (tmp_path / "nodes").exists()


@pytest.mark.parametrize("script, kind", [("train_source_only.py", "source"), ("test_adabn.py", "test")])
def test_lists_that_disagree_are_named(fork_two, command, city, source_run, tmp_path, script, kind):
    """A conversion used to score each node's own test images."""
    pictures = {"source": "gtav/images/*.png", "test": "cityscapes/leftImg8bit/val/*/*.png"}
    images = sorted(city.glob(pictures[kind]))
    lists = [tmp_path / "0.txt", tmp_path / "1.txt"]
    for path, found in zip(lists, (images, images[1:]), strict=True):
        path.write_text("".join(f"{image}\n" for image in found))
    weights = f"adabn.weights={source_run}"
    for process in fork_two(
        script, *(command(tmp_path, "nodes", f"{kind}.data_list={path}", weights) for path in lists)
    ):
        status, output = process.ended()
        assert status == 2 and "before conversion" not in output
        count = len(images)
        expected = rf"rank 1: the list of {kind} images is {count - 1} images \S+ \S+ but {count} images"
        assert re.search(expected, output), output


def test_a_node_without_the_run_folder_goes_on_from_what_the_first_node_has(fork_two, command, tmp_path):
    """Before, one process started at step 2 and the other at 0."""
    keys = ["train.num_steps=4", "val.held_out=0", "model.dropout=0.0"]  # of which every process has its own
    train_source_only.main(command(tmp_path, "nodes", *keys))
    straight = losses(tmp_path / "nodes")
    (tmp_path / "nodes/last.previous.pth").rename(tmp_path / "nodes/last.pth")  # after step 2
    both = [command(runs, "nodes", *keys) for runs in (tmp_path, tmp_path / "elsewhere")]
    (first, output), (second, _) = (process.ended() for process in fork_two("train_source_only.py", *both))
    assert first == second == 0 and "last.pth after step 2" in output and not (tmp_path / "elsewhere").exists()
    resumed = losses(tmp_path / "nodes")
    assert [record["step"] for record in resumed] == [1, 2, 3, 4]
    totals = [[record["source/total"] for record in run] for run in (resumed, straight)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)


def test_a_killed_process_is_named_on_its_node_and_both_nodes_start_again(nodes, command, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    keys = command(tmp_path, "nodes", "train.num_steps=4", "val.every=2", "val.held_out=0")
    arguments = ["5", str(tmp_path / "killed.py"), *keys]
    (first, said), (second, output) = (node.ended() for node in nodes(arguments, arguments, MAX_RESTARTS="1"))
    assert first == second == 0, said + output
    assert "lost another process" in said and "resuming from" in said
    assert "rank 1 failed first, with status 137" in output and "restart 1 of 1" in output
    log = (tmp_path / "nodes/log.txt").read_text()
    assert "2 process(es) on cpu" in log and "lost another process" in log
    assert [record["step"] for record in losses(tmp_path / "nodes")] == [1, 2, 3, 4]


def test_nodes_that_do_not_meet_give_up(nodes):
    never = ["0.05", "never.py"]
    for node in nodes(never, never, ports=(str(free_port()), str(free_port()))):
        status, output = node.ended(90)
        assert status == LOST and "Traceback" not in output
        assert "run.sh: error: the nodes did not connect within timeout_minutes" in output


def test_signal_while_nodes_meet_has_the_status_and_words_of_a_stop(nodes):
    """torch waits for the other node without running a handler of Python."""
    port = free_port()
    (node,) = nodes(["5", "never.py"], ports=(str(port), ""))

    def waits() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(waits, "the first node waits at its port")
    os.kill(node.pid, signal.SIGTERM)
    status, output = node.ended(20)
    assert status == 75 and "with nothing to save: run the same command to resume" in output, output


@pytest.fixture
def network() -> Iterator[tuple[str, str]]:
    """Two network namespaces, joined by a pair of interfaces."""
    names = ("pycda-test-a", "pycda-test-b")
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add pycda0 netns {names[0]} type veth peer name pycda0 netns {names[1]}")
    for number, name in enumerate(names, 1):
        commands += [f"-n {name} addr add 10.77.0.{number}/24 dev pycda0", f"-n {name} link set pycda0 up"]
        commands.append(f"-n {name} link set lo up")
    try:
        for arguments in commands:
            if shutil.which("ip") is None:
                pytest.skip("no command ip")
            made = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"this machine gives no network namespaces: {made.stderr.strip()}")
        yield names
    finally:
        for name in names:
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


def launched_within(arguments: list[str]) -> None:
    """The launcher within the network namespace that the first argument names."""
    name, *rest = arguments
    with open(f"/run/netns/{name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):  # os.setns is of Python 3.12
            raise OSError(ctypes.get_errno(), "setns")
    launched(rest)


def test_a_late_node_is_waited_for_and_a_cut_link_ends_both(network, command, tmp_path, fork):
    """Before, the second node waited for a quarter of an hour and the first one for half an hour."""
    where = {"NNODES": "2", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29511", "GLOO_SOCKET_IFNAME": "pycda0"}
    script = ["0.1", str(ROOT / "train_source_only.py"), *command(tmp_path, "nodes", *ENDLESS, "timeout_minutes=0.1")]
    processes = []
    for rank, name in enumerate(network):
        variables = where | {"NODE_RANK": str(rank), "NPROC": "1", "PYTHONPATH": str(ROOT)}
        processes.append(fork(launched_within, [name, *script], **variables))
        time.sleep(3 * (1 - rank))
    log = tmp_path / "nodes/log.txt"
    until(lambda: log.is_file() and STARTED in log.read_text(), "the first step")
    subprocess.run(["ip", "-n", network[0], "link", "set", "pycda0", "down"], check=True)
    for process, reason in zip(processes, ("Ranks 1 failed to pass", "lost another process"), strict=True):
        status, output = process.ended(90)
        assert (status, reason in output) == (LOST, True), output

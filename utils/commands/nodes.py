"""How the launchers of several nodes meet: torch's static rendezvous, which says who is waited for and gives up."""

import math

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from dataset.failures import one_line
from utils.peers import LostError, Store, meet, wait_for_listener

BACKEND = "nodes"  # as --rdzv_backend; --rdzv_conf rank=NODE_RANK,minutes=TIMEOUT_MINUTES
PORT = 29500  # torch's own


class NodeRendezvous(StaticTCPRendezvous):
    """The first node holds the store at MASTER_ADDR:MASTER_PORT, where all nodes come to."""

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all nodes, the first time. Raises LostError where one does not come within the timeout."""
        if self._store is None:
            self._store = self._host() if self.rank == 0 else self._join()
            meet(Store(self._store), self.rank, self.world_size, self.timeout.total_seconds(), "node")
        return super().next_rendezvous()

    @property
    def _place(self) -> str:
        return f"{self.master_addr}:{self.master_port}"

    def _host(self) -> dist.TCPStore:
        print(f"node 0: waiting for {self.world_size} nodes at {self._place}", flush=True)
        try:
            return self._connect()
        except dist.DistError as error:
            raise LostError(
                f"cannot listen at {self._place}: {one_line(error)}. Is MASTER_ADDR this node's address, and "
                "MASTER_PORT free?"
            ) from error

    def _join(self) -> dist.TCPStore:
        line = f"node {self.rank}: waiting for node 0 of {self.world_size} at {self._place}"
        wait_for_listener(
            self.master_addr, self.master_port, self.timeout.total_seconds(), lambda: print(line, flush=True)
        )
        return self._connect()

    def _connect(self) -> dist.TCPStore:
        return dist.TCPStore(
            self.master_addr,
            self.master_port,
            self.world_size,
            self.rank == 0,
            self.timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )


def _create(params: RendezvousParameters) -> RendezvousHandler:
    address, port = parse_rendezvous_endpoint(params.endpoint, PORT)
    rank, seconds = int(params.config["rank"]), math.ceil(60 * float(params.config["minutes"]))
    return NodeRendezvous(address, port, rank, params.max_nodes, params.run_id, seconds)


def register() -> None:
    """Let torchrun know ``BACKEND``."""
    rendezvous_handler_registry.register(BACKEND, _create)

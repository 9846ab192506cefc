"""A real cluster of three masters with a replica each, and a master with a replica under three sentinels: all
from the one binary."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from fedsvc.embedded import find_server
from servers.unused_ports import unused_ports
from servers.valkey import tied

PATIENCE = 30.0
SLOTS = 16384


def until(what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if holds():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.05)


class Node:
    def __init__(self, directory: Path, port: int, *arguments: str, sentinel: bool = False) -> None:
        self.port = port
        folder = directory / str(port)
        folder.mkdir()
        command = [str(find_server())]
        if sentinel:
            # a sentinel keeps what it learns in its configuration
            config = folder / "sentinel.conf"
            config.write_text(
                "\n".join([f"port {port}", "bind 127.0.0.1", f"dir {folder}", *arguments]) + "\n"
            )
            command += [str(config), "--sentinel"]
        else:
            command += ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
            # a master waits five seconds for more replicas, before it sends the first what it has
            command += ["--repl-diskless-sync-delay", "0"]
            command += [*arguments]
        command += ["--logfile", str(folder / "log")]
        self.process = subprocess.Popen(tied(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=PATIENCE)

    def answers(self) -> bool:
        with self.client() as client:
            return bool(client.ping())

    def replication(self, field: str) -> str:
        with self.client() as client:
            return str(client.info("replication").get(field, ""))

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Cluster:
    def __init__(self, directory: Path) -> None:
        arguments = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--appendonly", "no")
        self.nodes = [Node(directory, port, *arguments) for port in unused_ports(6)]

    def join(self) -> None:
        """Once it returns, the cluster is whole."""
        for node in self.nodes:
            until("a node answers", lambda node=node: node.answers())  # type: ignore[misc]
        first = self.nodes[0]
        per_master = -(-SLOTS // 3)
        for n, node in enumerate(self.nodes):
            with node.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
                if n < 3:
                    last = min(SLOTS, (n + 1) * per_master) - 1
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", n * per_master, last)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port)
        for node in self.nodes:
            until("all know each other", lambda node=node: self._info(node, "cluster_known_nodes") == "6")  # type: ignore[misc]
        for n, node in enumerate(self.nodes[3:]):
            with self.nodes[n].client() as client:
                master = str(client.execute_command("CLUSTER", "MYID"), "ascii")
            until("it is a replica", lambda node=node, master=master: self._follow(node, master))  # type: ignore[misc]
        for node in self.nodes:
            until("the cluster is whole", lambda node=node: self._info(node, "cluster_state") == "ok")  # type: ignore[misc]
        for node in self.nodes[3:]:
            until(
                "replicas are linked",
                lambda node=node: node.replication("master_link_status") == "up",  # type: ignore[misc]
            )

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def kill_master(self) -> None:
        """SIGKILL; returns once its replica has taken over."""
        self.nodes[0].kill()
        until(
            "the replica has taken over",
            lambda: (
                self.nodes[3].replication("role") == "master"
                and self._info(self.nodes[1], "cluster_state") == "ok"
            ),
        )

    def close(self) -> None:
        for node in self.nodes:
            node.kill()

    @staticmethod
    def _info(node: Node, field: str) -> str:
        with node.client() as client:
            told = str(client.execute_command("CLUSTER", "INFO"), "ascii")
            return dict(line.split(":", 1) for line in told.split())[field]

    @staticmethod
    def _follow(node: Node, master: str) -> bool:
        with node.client() as client:
            return bool(client.execute_command("CLUSTER", "REPLICATE", master))


class Sentinels:
    def __init__(self, directory: Path) -> None:
        ports = unused_ports(5)
        self._directory, self._ports = directory, ports
        self.master = Node(directory, ports[0])
        self.replica = Node(directory, ports[1], "--replicaof", "127.0.0.1", str(ports[0]))
        self.sentinels: list[Node] = []

    def watch(self) -> None:
        """Once it returns, the sentinels know everybody."""
        until("the master answers", self.master.answers)
        until(
            "the replica is linked",
            lambda: self.replica.replication("master_link_status") == "up",
        )
        self.sentinels = [
            Node(
                self._directory, port,
                f"sentinel monitor queue 127.0.0.1 {self._ports[0]} 2",
                "sentinel down-after-milliseconds queue 500",
                "sentinel failover-timeout queue 3000",
                sentinel=True,
            )
            for port in self._ports[2:]
        ]  # fmt: skip
        for node in self.sentinels:
            until("a sentinel answers", node.answers)
            with node.client() as client:  # they tell of themselves every two seconds
                client.execute_command("SENTINEL", "DEBUG", "publish-period", "100")
        for node in self.sentinels:
            until("sentinels know each other", lambda node=node: self._told(node, "num-other-sentinels") == 2)  # type: ignore[misc]
            until("and the replica", lambda node=node: self._told(node, "num-slaves") == 1)  # type: ignore[misc]

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels)
        return f"redis+sentinel://{places}/queue"

    def kill_master(self) -> None:
        """SIGKILL; returns once the replica has taken over."""
        self.master.kill()
        until(
            "the replica has taken over",
            lambda: self.replica.replication("role") == "master",
        )

    def close(self) -> None:
        for node in (*self.sentinels, self.replica, self.master):
            node.kill()

    @staticmethod
    def _told(node: Node, field: str) -> int:
        with node.client() as client:
            return int(client.sentinel_master("queue")[field])


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    made = Cluster(directory)
    try:
        made.join()
        yield made
    finally:
        made.close()


@contextmanager
def sentinels(directory: Path) -> Iterator[Sentinels]:
    made = Sentinels(directory)
    try:
        made.watch()
        yield made
    finally:
        made.close()

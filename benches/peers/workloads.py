"""The loads that echo servers are compared under, and what one run measures."""

import json
import subprocess
from typing import NamedTuple

from harness import LOAD_CORE, BenchError, Server, run_load, split_command

LOAD = "target/release/examples/load"
RATE = 30_000
RATE_WARM_UP_MS = 200
RUN_TIMEOUT_S = 120


class Workload(NamedTuple):
    title: str
    load: tuple
    framed: bool = False
    rate: int = None  # messages a second, whatever the server does

    def shrunk(self):
        """The same with fewer connections, for a check that it runs."""
        return self._replace(load=tuple(min(word, 200) if word == 10_000 else word
                                        for word in self.load))


WORKLOADS = {
    "64": Workload("64 connections, 64 B", ("--conns", 64, "--size", 64)),
    "1000": Workload("1,000 connections, 64 B", ("--conns", 1_000, "--size", 64)),
    "10000": Workload("10,000 connections, 64 B", ("--conns", 10_000, "--size", 64)),
    "pipelined": Workload(
        "64 connections, 16 in flight on each, 64 B",
        ("--conns", 64, "--size", 64, "--pipeline", 16),
    ),
    "framed": Workload(
        "64 connections, 16 lines of 64 B in flight on each, a reply for each line",
        ("--conns", 64, "--size", 64, "--pipeline", 16, "--framed"),
        framed=True,
    ),
    "16k": Workload("64 connections, 16 KiB", ("--conns", 64, "--size", 16_384)),
    "churn": Workload(
        "64 at a time: connect, echo 64 B, close; a message is a connection",
        ("--conns", 64, "--size", 64, "--churn"),
    ),
    "rate": Workload(
        f"64 connections, 64 B, {RATE:,} messages a second in all",
        ("--connections", 64, "--size", 64),
        rate=RATE,
    ),
}


def measure(peer, workload, seconds):
    """Returns messages per CPU-second, messages per second, and the share of a core used."""
    with Server(peer.framed if workload.framed else peer.echo) as server:
        if workload.rate:
            return measure_at_rate(server, workload, seconds)
        result, cpu_ns = run_load(server, *workload.load, "--seconds", seconds)
    cpu_s = cpu_ns / 1e9
    return result["messages"] / cpu_s, result["rate"], cpu_s / result["seconds"]


def measure_at_rate(server, workload, seconds):
    command = ["taskset", "-c", LOAD_CORE, *split_command(LOAD), "echo", server.address]
    command += [*workload.load, "--rate", workload.rate, "--pid", server.pid, "--json"]
    command += ["--warm-up", f"{RATE_WARM_UP_MS}ms", "--duration", f"{seconds * 1000:.0f}ms"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          timeout=RUN_TIMEOUT_S)
    if done.returncode != 0:
        raise BenchError(f"the load failed: {done.stdout}{done.stderr}")
    result = json.loads(done.stdout)
    cpu = result["server_cpu"]
    return 1e9 / cpu["ns_per_reply"], result["replies_per_second"], cpu["share"]

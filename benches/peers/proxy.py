#!/usr/bin/env python3
"""What the `proxy` example spends on TCP that it passes on, as a ratio to HAProxy.

As in benches/compare, all run in every round, pinned to the same core, in an order that turns around from
round to round, and the ratios are taken within the round. Both pass on to the same upstream, which
has the load's core with the load. HAProxy runs in TCP mode with one thread, and besides with
`option splice-auto`, which is reported and is not what the ratio is to.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import (
    BUILD, LOAD_CORE, BenchError, PortServer, Server, build_c, free_port, prepare, report, run_load,
)

EXAMPLE = "target/release/examples/proxy --listen {{addr}} --upstream {upstream}"
BASELINE = "haproxy"
START_TIMEOUT_S = 10

HAPROXY = """
global
    nbthread 1
    maxconn 4000
    stats socket {directory}/stats

defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    {option}

listen relay
    bind 127.0.0.1:{port} backlog 4096
    server upstream {upstream} check inter 2s
"""

LARGE_BYTES = 64 << 20

SCENARIOS = {
    "connections": (
        "64 at a time: connect, 64 B there, 64 B and FIN back; connections", "connections", 64
    ),
    "small": ("64 connections, 64 B round trips; messages", ["--conns", 64, "--size", 64], None),
    "one": ("1 connection, 64 B round trips; messages", ["--conns", 1, "--size", 64], None),
    "many": ("1,000 connections, 64 B round trips; messages",
             ["--conns", 1000, "--size", 64], None),
    "16k": ("64 connections, 16 KiB round trips; messages",
            ["--conns", 64, "--size", 16384], None),
    "large": (f"4 at a time: {LARGE_BYTES >> 20} MiB; bytes", "bytes", LARGE_BYTES),
}


class Haproxy(PortServer):
    """HAProxy in one process with one thread."""

    def __init__(self, upstream, option=""):
        self.directory = tempfile.TemporaryDirectory()
        settings = Path(self.directory.name) / "haproxy.cfg"
        port = free_port()
        settings.write_text(HAPROXY.format(
            directory=self.directory.name, port=port, upstream=upstream, option=option
        ))
        super().__init__(["haproxy", "-db", "-q", "-f", settings], port)

    def __exit__(self, failure, *rest):
        try:
            super().__exit__(failure, *rest)
        except BenchError:
            # 143 says that it ended by the signal.
            if self.process.returncode not in (0, 143, -15):
                raise


class Upstream(Server):
    """A server on the load's core."""

    def __init__(self, command):
        super().__init__(command)
        self.arguments[2] = LOAD_CORE


def main():
    options = parse_options()
    prepare()
    build_c("flow")
    version = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True)
    print(version.stdout.splitlines()[0])
    servers = {
        BASELINE: Haproxy,
        "haproxy-splice": lambda upstream: Haproxy(upstream, "option splice-auto"),
        "proxy": lambda upstream: Server(options.server.format(upstream=upstream)),
    }
    for scenario in options.scenario or SCENARIOS:
        title, load, size = SCENARIOS[scenario]
        print(f"{scenario}: {title}; {options.rounds} rounds of {options.seconds:g} s")
        rounds = []
        for number in range(options.rounds):
            order = list(servers) if number % 2 == 0 else list(reversed(servers))
            rounds.append({
                name: measure(servers[name], load, size, options.seconds) for name in order
            })
        report(rounds, servers, BASELINE)


def parse_options():
    parser = argparse.ArgumentParser(description="Compares TCP proxies by what they cost.")
    parser.add_argument("--server", default=EXAMPLE, metavar="COMMAND",
                        help="{{addr}} is where to listen, {upstream} where to dial")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2, help="per run (default 2)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("quartiles need two rounds at least")
    return options


def measure(server, load, size, seconds):
    """What was passed on for each CPU-second of the proxy, each second, and the core's share."""
    upstream = f"target/peers/flow serve {{addr}} {size}" if size else "target/peers/epoll {addr}"
    with Upstream(upstream) as upstream, server(upstream.address) as proxy:
        await_upstream(proxy)
        if size is None:
            result, cpu_ns = run_load(proxy, *load, "--seconds", seconds)
            count, took = result["messages"], result["seconds"]
        else:
            result, cpu_ns = run_flow(proxy, 4 if load == "bytes" else 64, seconds, size)
            count, took = result[load], result["seconds"]
    cpu_s = cpu_ns / 1e9
    return count / cpu_s, count / took, cpu_s / took


def await_upstream(proxy):
    """Waits until the proxy has found that its upstream is there."""
    host, port = proxy.address.rsplit(":", 1)
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up:
        with socket.create_connection((host, int(port)), START_TIMEOUT_S) as peer:
            try:
                peer.sendall(bytes(64))
                if len(peer.recv(64, socket.MSG_WAITALL)) == 64:
                    return
            except OSError:
                pass
        time.sleep(0.05)
    raise BenchError("the proxy passes nothing on")


def run_flow(proxy, conns, seconds, size):
    before_ns = proxy.settle()
    command = ["taskset", "-c", LOAD_CORE, BUILD / "flow", "fetch", proxy.address]
    command += [str(conns), str(seconds), str(size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"the load failed: {done.stderr}")
    return json.loads(done.stdout), proxy.settle() - before_ns


if __name__ == "__main__":
    try:
        main()
    except (BenchError, subprocess.CalledProcessError) as error:
        sys.exit(f"proxy.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

#!/usr/bin/env python3
"""Requests per CPU-second of the `http` example, as a ratio to nginx with one worker.

As in benches/compare, both run in every round, pinned to the same core, and the ratio is taken within the
round, which begins and ends with nginx. Both answer `GET /` with 13 bytes of text from memory; the sizes of the whole replies must lie
within 5 % of each other. The load is `wrk -t1`.
"""

import argparse
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import LOAD_CORE, BenchError, PortServer, Server, free_port, prepare, quartiles

EXAMPLE = "target/release/examples/http --listen {addr} --max-requests off"
CONNECTIONS = (64, 1_000)

NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ return 200 "Hello, World!"; }}
    }}
}}
"""


class Nginx(PortServer):
    """nginx in one process, so that its CPU time is that of the process."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory()
        settings = Path(self.directory.name) / "nginx.conf"
        port = free_port()
        settings.write_text(NGINX.format(directory=self.directory.name, port=port))
        super().__init__(["nginx", "-c", settings, "-p", self.directory.name], port)


def main():
    options = parse_options()
    prepare()
    servers = {"nginx": Nginx, "http": lambda: Server(options.server)}
    sizes = {name: reply_size(server) for name, server in servers.items()}
    print("bytes of a reply:", ", ".join(f"{name} {size}" for name, size in sizes.items()))
    if abs(sizes["http"] - sizes["nginx"]) > 0.05 * sizes["nginx"]:
        raise BenchError("the replies are not of a size")
    ratios = {connections: [] for connections in options.connections or CONNECTIONS}
    for number in range(options.rounds):
        for connections, known in ratios.items():
            first, ours, last = (
                measure(server, connections, options.seconds)
                for server in (Nginx, servers["http"], Nginx)
            )
            known.append(ours / statistics.mean((first, last)))
            print(
                f"round {number + 1}, {connections:,} connections: http {ours:,.0f}, nginx {first:,.0f} "
                f"and {last:,.0f} requests per CPU-second, ratio {known[-1]:.3f}",
                flush=True,
            )
    for connections, known in ratios.items():
        low, middle, high = quartiles(known)
        print(f"http / nginx, {connections:,} connections: {middle:.3f} [{low:.3f}, {high:.3f}]")


def parse_options():
    parser = argparse.ArgumentParser(description="Compares the http example with nginx.")
    parser.add_argument("--server", default=EXAMPLE, metavar="COMMAND")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument(
        "--connections",
        type=int,
        action="append",
        help="repeatable (default: " + " and ".join(map(str, CONNECTIONS)) + ")",
    )
    return parser.parse_args()


def reply_size(server):
    with server() as running:
        host, port = running.address.split(":")
        with socket.create_connection((host, int(port))) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            reply = b""
            while not reply.endswith(b"Hello, World!"):
                reply += peer.recv(4096)
    return len(reply)


def measure(server, connections, seconds):
    """Requests per second of CPU time that the server used."""
    with server() as running:
        wrk = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}"]
        wrk += [f"-d{seconds}s", f"http://{running.address}/"]
        before_ns = running.settle()
        output = subprocess.run(wrk, check=True, capture_output=True, text=True).stdout
        used_ns = running.settle() - before_ns
    served = re.search(r"^\s*(\d+) requests in", output, re.MULTILINE)
    if not served or "Non-2xx" in output or "Socket errors" in output:
        raise BenchError(output)
    return int(served[1]) * 1e9 / used_ns


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"{Path(__file__).name}: {error}")

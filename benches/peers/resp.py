#!/usr/bin/env python3
"""Commands per CPU-second of the `resp` example, as a ratio to redis-server.

As in benches/compare, both run in every round, pinned to the same core, in an order that turns around from
round to round, and the ratio is taken within the round. redis-server keeps nothing on disk and has one
thread for connections. The load is redis-benchmark on the other core, each of its tests with one command
in flight on each connection and with 16.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import LOAD_CORE, BenchError, PortServer, Server, free_port, prepare, report

EXAMPLE = "target/release/examples/resp --listen {addr}"
BASELINE = "redis-server"

TESTS = {
    "ping_inline": "PING as a line",
    "ping_mbulk": "PING as an array",
    "set": "SET of 3 bytes",
    "get": "GET of 3 bytes",
}
PIPELINES = (1, 16)

# About what one core executes of each in a second: how many commands a run has follows from it, so that
# both servers do the same.
COMMANDS_PER_S = {1: 100_000, 16: 1_000_000}


class Redis(PortServer):
    """redis-server in memory alone, in a directory of its own."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory()
        port = free_port()
        words = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", self.directory.name]
        words += ["--save", "", "--appendonly", "no", "--io-threads", 1]
        # What it says would come among the figures; what goes wrong is seen by its not listening.
        words += ["--logfile", Path(self.directory.name) / "log"]
        super().__init__(list(map(str, words)), port)


def main():
    options = parse_options()
    prepare()
    version = subprocess.run(["redis-server", "-v"], capture_output=True, text=True, check=True)
    print(" ".join(version.stdout.split()[:3]), flush=True)
    servers = {BASELINE: Redis, "resp": lambda: Server(options.server)}
    runs = [(pipeline, test) for pipeline in options.pipeline or PIPELINES
            for test in options.test or TESTS]
    rounds = {run: [] for run in runs}
    for number in range(options.rounds):
        order = list(servers) if number % 2 == 0 else list(reversed(servers))
        measured = {name: measure(servers[name], runs, options) for name in order}
        for run in runs:
            rounds[run].append({name: measured[name][run] for name in servers})
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    keys = f"{options.keys:,} keys" if options.keys > 1 else "one key"
    for pipeline, test in runs:
        print(f"{test}, {pipeline} in flight: {TESTS[test]}; {options.connections} connections, {keys}")
        report(rounds[pipeline, test], servers, BASELINE)


def parse_options():
    parser = argparse.ArgumentParser(description="Compares the resp example with redis-server.")
    parser.add_argument("--server", default=EXAMPLE, metavar="COMMAND")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1,
                        help="about so many for each run (default 1)")
    parser.add_argument("--test", action="append", choices=TESTS)
    parser.add_argument("--pipeline", action="append", type=int, choices=PIPELINES)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--keys", type=int, default=100_000,
                        help="chosen from at random by SET and GET (default 100,000)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("quartiles need two rounds at least")
    if options.seconds <= 0:
        parser.error("--seconds is not above 0")
    return options


def measure(server, runs, options):
    """For each run, the commands for each CPU-second of the server, each second, and the core's share."""
    with server() as running:
        # All keys are there before the first is read, so GET finds nearly every one.
        run_benchmark(running, 16, "set", 3 * options.keys, options)
        return {run: measure_run(running, run, options) for run in runs}


def measure_run(running, run, options):
    pipeline, test = run
    count = max(int(COMMANDS_PER_S[pipeline] * options.seconds), 1_000)
    before_ns = running.settle()
    rate = run_benchmark(running, pipeline, test, count, options)
    cpu_s = (running.settle() - before_ns) / 1e9
    return count / cpu_s, rate, cpu_s * rate / count


def run_benchmark(running, pipeline, test, count, options):
    """Returns the commands executed in each second."""
    host, port = running.address.rsplit(":", 1)
    command = ["taskset", "-c", LOAD_CORE, "redis-benchmark", "-h", host, "-p", port, "--csv"]
    command += ["-c", options.connections, "-P", pipeline, "-t", test, "-n", count]
    # Without, each command has the same key.
    command += ["-r", options.keys] if options.keys > 1 else []
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    rows = re.findall(r'^"[^"]*","([0-9.]+)"', done.stdout, re.MULTILINE)
    if done.returncode != 0 or len(rows) != 1 or "rror" in done.stderr:
        raise BenchError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return float(rows[0])


if __name__ == "__main__":
    try:
        main()
    except (BenchError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"resp.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

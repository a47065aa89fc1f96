#!/usr/bin/env python3
"""Messages per CPU-second of the server, as a ratio to a minimal C epoll loop.

The machine's speed drifts by tens of percent within minutes, so absolute rates are not
comparable. Every round therefore runs all the servers one after the other, in an order that turns
around from round to round, and the ratio is taken within the round; the result is the median of
the rounds.
"""

import argparse
import subprocess
import sys

from harness import BASELINE, BenchError, Server, prepare, report, run_load

BASELINE_NAME = "c-epoll"
DEFAULT_CANDIDATE = ("echo", "target/release/examples/echo --listen {addr}")

SCENARIOS = {
    "64": ("64 connections, 64 B", ["--conns", 64, "--size", 64]),
    "1000": ("1,000 connections, 64 B", ["--conns", 1000, "--size", 64]),
    "10000": ("10,000 connections, 64 B", ["--conns", 10000, "--size", 64]),
    "16k": ("64 connections, 16 KiB", ["--conns", 64, "--size", 16384]),
    "pipelined": (
        "64 connections, 16 in flight, 64 B",
        ["--conns", 64, "--size", 64, "--pipeline", 16],
    ),
    "churn": (
        "64 at a time: connect, echo 64 B, close",
        ["--conns", 64, "--size", 64, "--churn"],
    ),
}


def main():
    options = parse_options()
    prepare()
    candidates = dict(options.server or [DEFAULT_CANDIDATE])
    servers = {BASELINE_NAME: BASELINE, **candidates}
    for scenario in options.scenario or SCENARIOS:
        title, load = SCENARIOS[scenario]
        print(f"{scenario}: {title}; {options.rounds} rounds of {options.seconds:g} s")
        rounds = []
        for number in range(options.rounds):
            order = list(servers) if number % 2 == 0 else list(reversed(servers))
            rounds.append({
                name: measure(servers[name], load, options.seconds) for name in order
            })
        report(rounds, servers, BASELINE_NAME)


def parse_options():
    parser = argparse.ArgumentParser(
        description="Compares echo servers by messages per CPU-second of the server."
    )
    parser.add_argument(
        "--server",
        action="append",
        type=named_command,
        metavar="NAME=COMMAND",
        help="a candidate; {addr} stands for the address to listen on "
        f"(default: {'='.join(DEFAULT_CANDIDATE)}; repeatable)",
    )
    parser.add_argument(
        "--scenario", action="append", choices=SCENARIOS, help="default: all; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2, help="per run (default 2)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("quartiles need two rounds at least")
    return options


def named_command(text):
    name, separator, command = text.partition("=")
    if not (name and separator and command):
        raise argparse.ArgumentTypeError(f"not NAME=COMMAND: {text}")
    if name == BASELINE_NAME:
        raise argparse.ArgumentTypeError(f"{name} is the baseline's name")
    return name, command


def measure(command, load, seconds):
    """Returns messages per CPU-second, messages per second, and the share of a core used."""
    with Server(command) as server:
        result, cpu_ns = run_load(server, *load, "--seconds", seconds)
    cpu_s = cpu_ns / 1e9
    return result["messages"] / cpu_s, result["rate"], cpu_s / result["seconds"]


if __name__ == "__main__":
    try:
        main()
    except (BenchError, subprocess.CalledProcessError) as error:
        sys.exit(f"compare.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

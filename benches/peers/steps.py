#!/usr/bin/env python3
"""Where the user instructions of a message go: counted by callgrind, and attributed to the steps of the
loop by the functions that each instruction was inlined from.

It needs `valgrind`, and `addr2line` of binutils.
"""

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from count import DEFAULT_SERVER, LOADS, MESSAGES_FEW, MESSAGES_MANY
from harness import BenchError, Server, prepare, run_load, split_command

TITLES = ("echo, 64 connections", "echo, 1 connection", "churned connection, 64 at a time")

# An instruction belongs to the first step of which a function is among those that it was inlined from,
# written as file:function. What is in no step of ours is named by its function.
STEPS = {
    "read the clock": ["mod.rs:refresh_now_if_stale", "os.rs:now", "os.rs:coarse_now"],
    "accept(2), and the peer's address": ["os.rs:accept"],
    "recv(2)": ["os.rs:read"],
    "send(2)": ["os.rs:write"],
    "epoll_ctl(2)": ["os.rs:register"],
    "close(2)": ["os.rs:close"],
    "epoll_wait(2)": ["os.rs:wait"],
    "the handler's on_data": ["dispatch.rs:call_data"],
    "note what was sent": ["io.rs:send_scratch"],
    "on_idle": ["dispatch.rs:call_idle"],
    "on_open and on_connected": ["dispatch.rs:call_accepted"],
    "on_closing": ["dispatch.rs:call_with_input"],
    "on_closed": ["dispatch.rs:call_shared"],
    "choose the deadlines": ["settle.rs:arm_sole_deadline", "settle.rs:arm_and_queue"],
    "count the request, go idle": ["io.rs:deliver", "io.rs:note_data"],
    "read, note what came, prepare on_data": ["io.rs:read_once", "io.rs:handle_read_error"],
    "enter the connection in the table": ["accept.rs:admit"],
    "limits, and the accept loop": ["accept.rs:accept_from", "accept.rs:accept_ready"],
    "take the connection out of the table": ["mod.rs:remove"],
    "release the connection": ["ending.rs:reap_some", "ending.rs:begin_closing"],
    "settle": ["settle.rs:settle", "settle.rs:act_on_requests", "serve.rs:serve_input"],
    "find the connection of an event": ["mod.rs:serve_events", "serve.rs:serve_event"],
    "the turn around it": ["mod.rs:turn_once", "mod.rs:turn_on"],
}

# Instructions of a shared library, by what they are called for.
LIBRARIES = {"clock_gettime": "read the clock"}
OTHER = "other"


def main():
    options = parse_options()
    prepare()
    binary = split_command(options.server)[0]
    for title in TITLES:
        print(f"user instructions per {title}")
        steps = instructions_by_step(options.server, binary, LOADS[title])
        for step in [*STEPS, OTHER]:
            if steps[step] >= 0.5:
                print(f"  {step:<40}{steps[step]:>8,.0f}")
        print(f"  {'in all':<40}{sum(steps.values()):>8,.0f}", flush=True)


def parse_options():
    parser = argparse.ArgumentParser(description="Attributes the instructions of a message to steps.")
    parser.add_argument(
        "--server",
        default=DEFAULT_SERVER,
        metavar="COMMAND",
        help=f"{{addr}} stands for the address to listen on (default: {DEFAULT_SERVER})",
    )
    return parser.parse_args()


def instructions_by_step(command, binary, load):
    few, many = (
        instructions_of_run(command, [*load, "--messages", messages])
        for messages in (MESSAGES_FEW, MESSAGES_MANY)
    )
    each = {
        place: (count - few.get(place, 0)) / (MESSAGES_MANY - MESSAGES_FEW)
        for place, count in many.items()
    }
    chains = inlined_from(binary, {address for (name, _), address in each if name == binary})
    steps = collections.Counter()
    for ((name, function), address), count in each.items():
        if name == binary:
            steps[step_of(chains.get(address, []))] += count
        else:
            steps[LIBRARIES.get(function.split("@")[0], OTHER)] += count
    return steps


def step_of(chain):
    for step, functions in STEPS.items():
        if not chain.isdisjoint(functions):
            return step
    return OTHER


def instructions_of_run(command, load):
    """Returns how often each instruction of a server under a load was executed, by the file it lies in,
    its function, and its address there."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "callgrind.out"
        counting = ["valgrind", "-q", "--tool=callgrind", "--dump-instr=yes"]
        with Server(command, [*counting, f"--callgrind-out-file={out}"]) as server:
            run_load(server, *load)
        return instructions_in(out)


def instructions_in(out):
    """Reads the format that is described in valgrind's manual, "Callgrind Format Specification"."""
    counts = collections.Counter()
    names = {"ob": {}, "fn": {}}
    now = {"ob": "", "fn": ""}
    address, of_call = 0, False
    for line in out.read_text().splitlines():
        if found := re.match(r"(c?)(ob|fn)=\((\d+)\)(?: (.+))?$", line):
            called, kind, number, name = found.groups()
            if name:
                names[kind][number] = name
            if not called:
                now[kind] = names[kind].get(number, "")
        elif line.startswith("calls="):
            # The next line is what the call cost in all, which is counted where it was spent.
            of_call = True
        elif found := re.match(r"(0x[0-9a-f]+|\+\d+|-\d+|\*) \S+ (\d+)$", line):
            where, count = found.groups()
            if where.startswith("0x"):
                address = int(where, 16)
            elif where != "*":
                address += int(where)
            if not of_call:
                counts[(now["ob"], now["fn"]), address] += int(count)
            of_call = False
    if not counts:
        raise BenchError("callgrind left no counts")
    return counts


def inlined_from(binary, addresses):
    """Returns the functions that each instruction is in, inlined ones too, as file:function."""
    asked = "\n".join(hex(address) for address in addresses)
    command = ["addr2line", "-e", binary, "-a", "-i", "-f", "-C"]
    answer = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout
    chains, chain, function = {}, set(), None
    for line in answer.splitlines():
        if line.startswith("0x"):
            chain, function = chains.setdefault(int(line, 16), set()), None
        elif function is None:
            # Without the types that it was made for, and what it is a method of.
            plain = re.sub(r"<[^<>]*>", "", re.sub(r"<[^<>]*>", "", line))
            function = re.split(r"::|<", plain.rstrip(":"))[-1] or plain
        else:
            chain.add(f"{Path(line.split(':')[0]).name}:{function}")
            function = None
    return chains


if __name__ == "__main__":
    try:
        main()
    except (BenchError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"steps.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

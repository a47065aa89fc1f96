#!/usr/bin/env bash
# Software events of the server, for each message: switches, migrations, faults, system calls.
source "$(dirname "$0")/common.sh"
need perf
build
start_server
events=task-clock,context-switches,cpu-migrations,page-faults
calls=syscalls:sys_enter_recvfrom,syscalls:sys_enter_sendto,syscalls:sys_enter_epoll_pwait
perf stat -e "$events,$calls" -p "$pid" -o "$work/stat" 2>"$work/perf.err" &
watching=$!
sleep 0.5
run_load --duration "${seconds}s"
kill -INT "$watching" 2>/dev/null || true
wait "$watching" || true
permitted "$work/perf.err"
grep -v '^#' "$work/stat" | sed '/^ *$/d'

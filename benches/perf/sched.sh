#!/usr/bin/env bash
# How long the server had to wait for a processor when it had work to do: perf sched.
source "$(dirname "$0")/common.sh"
need perf
build
start_server
perf sched record -q -o "$work/data" -- sleep "$seconds" >/dev/null 2>"$work/perf.err" &
watching=$!
sleep 0.3
run_load --duration "$((seconds > 1 ? seconds - 1 : 1))s"
wait "$watching" || true
permitted "$work/perf.err"
perf sched latency -i "$work/data" 2>/dev/null | grep -E 'Task|echo|load' | sed -n '1,4p'

#!/usr/bin/env bash
# System calls of the server, with the time each took: perf trace.
source "$(dirname "$0")/common.sh"
need perf
build
start_server
perf trace -s -p "$pid" -o "$work/trace" 2>"$work/perf.err" &
watching=$!
sleep 0.5
run_load --duration "${seconds}s"
kill -INT "$watching" 2>/dev/null || true
wait "$watching" || true
permitted "$work/perf.err"
sed '/^ *$/d' "$work/trace" | sed -n '1,14p'

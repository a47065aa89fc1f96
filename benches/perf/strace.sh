#!/usr/bin/env bash
# System calls for each message: strace counts them, which slows the server but changes no count.
source "$(dirname "$0")/common.sh"
need strace
build
start_server strace -D -f -c -o "$work/strace"
run_load --count "${MESSAGES:-20000}"
kill "$pid"
wait "$pid" || true
started=()
for _ in $(seq 100); do
    grep -q total "$work/strace" 2>/dev/null && break
    sleep 0.1
done
awk -v messages="$replies" '$4 ~ /^[0-9]+$/ && $4 > messages / 100 {
    printf "%-12s %6.2f a message\n", $NF, $4 / messages
}' "$work/strace"

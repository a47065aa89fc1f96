#!/usr/bin/env bash
# System calls of the server, with the time each took: perf trace.
source "$(dirname "$0")/common.sh"
watch_with_perf trace -s -o "$work/trace"
sed '/^ *$/d' "$work/trace" | sed -n '1,14p'

#!/usr/bin/env bash
# User instructions and first-level cache misses for each message, as exact counts: two runs that differ
# in the number of messages, so that starting and ending cancel out.
source "$(dirname "$0")/common.sh"
need valgrind
build
few=${MESSAGES:-2000}
many=$((few * 4))
for count in "$few" "$many"; do
    start_server valgrind -q --tool=callgrind --cache-sim=yes --D1=49152,12,64 \
        "--callgrind-out-file=$work/callgrind.$count"
    run_load --count "$count"
    stop_server
    echo "$replies" >"$work/replies.$count"
done
awk -v a="$(cat "$work/replies.$few")" -v b="$(cat "$work/replies.$many")" '
    /^events:/ { for (i = 2; i <= NF; i++) name[i - 1] = $i; events = NF - 1 }
    /^totals:/ { files++; for (i = 2; i <= NF; i++) total[files, i - 1] = $i; next }
    END {
        for (i = 1; i <= events; i++) {
            count[name[i]] = (total[files, i] - total[1, i]) / (b - a)
        }
        printf "%.1f instructions a message\n", count["Ir"]
        printf "%.2f first-level misses of data a message\n", count["D1mr"] + count["D1mw"]
    }
' "$work/callgrind.$few" "$work/callgrind.$many"

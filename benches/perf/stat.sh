#!/usr/bin/env bash
# Software events of the server, for each message: switches, migrations, faults, system calls.
source "$(dirname "$0")/common.sh"
events=task-clock,context-switches,cpu-migrations,page-faults
calls=syscalls:sys_enter_recvfrom,syscalls:sys_enter_sendto,syscalls:sys_enter_epoll_pwait
watch_with_perf stat -e "$events,$calls" -o "$work/stat"
grep -v '^#' "$work/stat" | sed '/^ *$/d'

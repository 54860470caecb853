#!/bin/sh
# A service: service.sh start|stop PIDFILE PORT COMMAND ...; both may be said twice.
act=$1 pidfile=$2 port=$3
shift 3
pid=$(cat "$pidfile" 2>/dev/null)
case $act in
start)
    if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then exit 0; fi
    setsid "$@" >>"$pidfile.log" 2>&1 </dev/null &
    echo $! >"$pidfile"
    ;;
stop)
    [ -n "$pid" ] || exit 0
    kill "$pid" 2>/dev/null
    for _ in $(seq 100); do
        case $(cut -d' ' -f3 "/proc/$pid/stat" 2>/dev/null) in
        '' | Z) rm -f "$pidfile" && exit 0 ;;
        esac
        sleep 0.02
    done
    echo "process $pid does not end" >&2
    exit 1
    ;;
esac

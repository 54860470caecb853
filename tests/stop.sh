#!/bin/sh
# A hook: stop.sh DIRECTORY waits for as long as the file DIRECTORY/stop names its step.
[ "$(cat "$1/stop" 2>/dev/null)" = "$AWESOMEPROXY_STEP" ] || exit 0
touch "$1/stopped"
while [ -e "$1/stop" ]; do sleep 0.02; done

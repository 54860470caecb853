#!/bin/sh
# A hook: stop.sh DIRECTORY waits for as long as the file DIRECTORY/stop names its step.
told() { [ "$(cat "$1/stop" 2>/dev/null)" = "$AWESOMEPROXY_STEP" ]; }
told "$1" || exit 0
touch "$1/stopped"
while told "$1"; do sleep 0.05; done

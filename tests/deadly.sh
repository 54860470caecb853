#!/bin/sh
# A hook: deadly.sh FILE kills the process of the number that is in the file behind its step.
{ read -r step pid <"$1"; } 2>/dev/null || exit 0
[ "$step" = "$AWESOMEPROXY_STEP" ] && kill -9 "$pid"
exit 0

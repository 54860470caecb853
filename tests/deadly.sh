#!/bin/sh
# A hook: deadly.sh DIRECTORY becomes the script there that is called as the site and the step.
script="$1/script-$AWESOMEPROXY_NAME-$AWESOMEPROXY_STEP"
[ ! -e "$script" ] || exec sh "$script"

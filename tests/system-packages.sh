#!/bin/sh
# Installs the Debian packages that some tests drive. Where it can't, it says so and the tests that need them skip.
set -u
missing=""
command -v mosquitto_pub >/dev/null 2>&1 || missing="$missing mosquitto-clients"
{ command -v mosquitto || [ -x /usr/sbin/mosquitto ]; } >/dev/null 2>&1 || missing="$missing mosquitto"
command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    # A package must not start a broker of its own on this machine.
    apt-get update -qq >/dev/null 2>&1
    if RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1; then
        echo "installed:$missing"
        exit 0
    fi
fi
echo "not installed:$missing (apt-get install$missing); the tests that need them will be skipped"
exit 0

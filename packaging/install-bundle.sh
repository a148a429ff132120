#!/bin/sh
# install-bundle.sh BIN TO FROM installs the runtime bundle in FROM as TO, with the banger in
# BIN, by a daemon that keeps its state for that moment only.
set -eu
bin=$1 to=$2 from=$3
state=$(mktemp -d)
run() { env BANGER_STATE_DIR="$state" BANGER_RUNTIME_DIR="$to" BANGER_CONFIG=/dev/null "$bin/banger" "$@"; }
trap 'run daemon stop || true; rm -rf "$state"' EXIT
run runtime install "$from" --allow-downgrade

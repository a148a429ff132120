#!/bin/sh
# install-bundle.sh BIN TO FROM installs the runtime bundle in FROM as TO, with the banger in
# BIN, by a daemon that keeps its state for that moment only.
set -eu
state=$(mktemp -d)
run() { env BANGER_STATE_DIR="$state" BANGER_RUNTIME_DIR="$2" BANGER_CONFIG=/dev/null "$1/banger" "$3" "$4" $5; }
trap 'run "$bin" "$to" daemon stop ""; rm -rf "$state"' EXIT
bin=$1 to=$2 from=$3
run "$bin" "$to" runtime install "$from --allow-downgrade"

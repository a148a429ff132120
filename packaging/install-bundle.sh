#!/bin/sh
# install-bundle.sh BIN TO FROM installs the runtime bundle in FROM as TO, with the banger in
# BIN, by a daemon that keeps its state for that moment only. Where this user has VMs and their
# daemon uses the bundle in TO, it is done by that one, for it knows what their disks need.
set -eu
bin=$1 to=$2 from=$3
case $(id -u) in
0) default=/var/lib/banger ;;
*) default=${XDG_STATE_HOME:-$HOME/.local/state}/banger ;;
esac
installed=$to/../../bin/banger
if [ -z "${DESTDIR:-}" ] && [ -e "$to/bundle.json" ] && [ -e "${BANGER_STATE_DIR:-$default}/banger.db" ]; then
	there=$("$installed" runtime path)
	if [ "$there" -ef "$to" ]; then
		exec "$installed" runtime install "$from" --allow-downgrade
	fi
fi
state=$(mktemp -d)
run() { env BANGER_STATE_DIR="$state" BANGER_RUNTIME_DIR="$to" BANGER_CONFIG=/dev/null "$bin/banger" "$@"; }
trap 'run daemon stop || true; rm -rf "$state"' EXIT
run runtime install "$from" --allow-downgrade

#!/bin/sh
# Installs the Debian packages of debian.txt that this machine lacks, through its own apt.
set -eu
list=$(dirname "$0")/debian.txt
missing=
for p in $(sed 's/#.*//' "$list"); do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
install="env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends$missing"
if [ "$(id -u)" = 0 ]; then
	apt-get update && $install
elif command -v sudo >/dev/null; then
	sudo apt-get update && sudo $install
else
	echo "banger needs packages that are not installed. As root, run:" >&2
	echo "  apt-get update && $install" >&2
	exit 1
fi

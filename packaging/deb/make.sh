#!/bin/sh
# make.sh VERSION DATE DIR makes DIR/banger_VERSION_amd64.deb of the tree build/stage/usr.
set -eu
date=$2 dir=$3
# A Debian version begins with a digit; one of git's without a tag does not.
version=$(echo "$1" | sed 's/^v//; s/-/+/g')
case $version in [0-9]*.*) ;; *) version=0.0~$(date -u -d "$date" +%Y%m%d%H%M%S)+$version ;; esac
# The directory that a bundle is put in the place of is the package's, what is in it is not.
rmdir build/stage/usr/lib/banger 2>/dev/null || true
export BANGER_VERSION="$version"
SOURCE_DATE_EPOCH=$(date -u -d "$date" +%s) # the same package for the same source
export SOURCE_DATE_EPOCH
exec env GOFLAGS=-mod=mod CGO_ENABLED=0 go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.0 package \
	--config packaging/nfpm.yaml --packager deb --target "$dir/banger_${version}_amd64.deb"

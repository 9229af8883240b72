#!/bin/bash
# Makes a package of bin/chainmail: build.sh deb|rpm VERSION. `make deb` and
# `make rpm` call it. The package is the last line of its output.
#
#   PACKAGE_VERSION     version of the package    (from VERSION, see version.sh)
#   PACKAGE_MAINTAINER  who answers for it        (who made the last commit)
#   SOURCE_DATE_EPOCH   date of all that is in it (that of the last commit)
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:?usage: build.sh deb|rpm VERSION} described=${2:?usage: build.sh deb|rpm VERSION}
stage=bin/package
: "${PACKAGE_VERSION:=$(packaging/version.sh "$described")}"
: "${PACKAGE_MAINTAINER:=$(git log -1 --format='%an <%ae>' 2>/dev/null || echo 'chainmail <root@localhost>')}"
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
PACKAGE_ARCH=$(go env GOARCH)
PACKAGE_DATE=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
export PACKAGE_VERSION PACKAGE_MAINTAINER PACKAGE_ARCH SOURCE_DATE_EPOCH

# pack compresses without names and times, so that the same tree gives the same package.
pack() { gzip -9 -n -c; }

# licences prints the licence of every Go module that is in the binary: they want
# to be told with it.
licences() {
	local module version dir file
	go list -deps -tags netgo,osusergo -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/chainmail | sort -u |
		while read -r module version dir; do
			printf '==== %s %s\n\n' "$module" "$version"
			for file in "$dir"/LICEN[SC]E* "$dir"/COPYING* "$dir"/NOTICE*; do
				if [[ -f $file ]]; then cat "$file" && echo; fi
			done
		done
	printf '==== Go %s\n\n' "$(go env GOVERSION)"
	cat "$(go env GOROOT)/LICENSE"
}

rm -rf "$stage"
mkdir -p "$stage/man"
bin/chainmail man --dir "$stage/man" --date "${PACKAGE_DATE%T*}"
gzip -9 -n "$stage"/man/*
bin/chainmail completion bash >"$stage/chainmail.bash"
bin/chainmail completion fish >"$stage/chainmail.fish"
bin/chainmail completion zsh >"$stage/_chainmail"
licences | pack >"$stage/third-party-licenses.gz"
pack >"$stage/changelog.gz" <<END
chainmail ($PACKAGE_VERSION) unstable; urgency=medium

  * See /usr/share/doc/chainmail/CHANGELOG.md.

 -- $PACKAGE_MAINTAINER  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
grep -v '^#' packaging/deb/lintian-overrides >"$stage/lintian-overrides"

go tool -modfile=packaging/tools/go.mod nfpm package --config packaging/nfpm.yaml --packager "$kind" --target bin/ >"$stage/log" ||
	{ cat "$stage/log" >&2; exit 1; }
sed -n 's/^created package: //p' "$stage/log"

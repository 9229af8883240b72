#!/bin/bash
# Tests the packages of bin/chainmail: package-test.sh VERSION. As root: hosts with
# systemd are containers made of packaging/debian-root.sh's tree, in network
# namespaces of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:?usage: package-test.sh VERSION}
((EUID == 0)) || { echo "package-test: run as root: containers are booted" >&2; exit 1; }

step() { printf '\n== %s\n' "$*"; }

packages=$(mktemp -d /var/tmp/chainmail-packages.XXXXXX)
trap 'rm -rf "$packages"' EXIT
step "packages of $version, and a newer one"
for number in 1 2; do
	deb=$(PACKAGE_VERSION=$(packaging/version.sh "$version")+test$number packaging/build.sh deb "$version")
	mv "$deb" "$packages/test$number.deb"
done
rpm=$(packaging/build.sh rpm "$version")
mv "$rpm" "$packages/chainmail.rpm"
rpm=$packages/chainmail.rpm

step lintian
lintian --fail-on error,warning --allow-root "$packages/test1.deb"

step "the rpm"
rpm -K "$rpm"
[[ $(rpm -qp --configfiles "$rpm" | tr '\n' ' ') == "/etc/chainmail/chainmail.yaml /etc/chainmail/lb.yaml " ]] ||
	{ echo "configuration files: $(rpm -qp --configfiles "$rpm")"; exit 1; }
# All but the places of Debian's own must be in both.
diff <(dpkg-deb --fsys-tarfile "$packages/test1.deb" | tar t | sed -n 's/^\.\(.*[^/]\)$/\1/p' |
	grep -v -e /lintian/ -e /copyright$ -e /changelog.gz$ -e vendor-completions/ | sort) \
	<(rpm -qpl "$rpm" | grep -v -e /licenses/ -e site-functions/ | sort) || { echo "the .deb (<) and the .rpm (>) differ"; exit 1; }
for script in prein postin preun postun; do
	rpm -qp --qf "%{${script^^}}" "$rpm" >"$packages/$script"
	grep -q . "$packages/$script" || { echo "the rpm has no %$script"; exit 1; }
	sh -n "$packages/$script"
done

step "hosts"
tree=$(packaging/debian-root.sh)
PACKAGE_TEST_ROOT=$tree PACKAGE_TEST_DIR=$packages PACKAGE_TEST_PROGRAM=$PWD/bin/chainmail \
	go test -count=1 -v -timeout 20m -run '^TestPackage' ./testcluster

#!/bin/bash
# shellcheck disable=SC1091,SC2016 # os-release is the machine's; apt expands its own $()
# Makes the small Debian tree that the package tests boot, and prints where it is.
# Root is needed, and debootstrap; the tree is kept for the next time.
#
#   SUITE   Debian's release          (the one this machine runs)
#   MIRROR  where to take it from     (the mirror in apt's configuration)
#   ROOTS   where trees are kept      ($XDG_CACHE_HOME/chainmail or ~/.cache/chainmail)
set -euo pipefail

# What a host of ours has beside the essential: services, the user's making, and
# the balancer's nginx.
packages=(systemd-sysv dbus adduser iproute2 procps nginx-light libnginx-mod-stream)

: "${SUITE:=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")}"
: "${MIRROR:=$(apt-get indextargets --format '$(CODENAME) $(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
	awk -v suite="$SUITE" '$1 == suite && $2 == "Debian" { print $3; exit }')}"
: "${ROOTS:=${XDG_CACHE_HOME:-$HOME/.cache}/chainmail}"

# Another list of packages is another tree.
tree=$ROOTS/debian-$SUITE-$(IFS=,; sha256sum <<<"${packages[*]}" | cut -c1-8)
if [[ ! -d $tree ]]; then
	[[ $MIRROR ]] || { echo "debian-root: apt's configuration names no mirror of Debian $SUITE: give MIRROR=URL or another SUITE" >&2; exit 1; }
	mkdir -p "$ROOTS"
	making=$(mktemp -d "$ROOTS/making.XXXXXX")
	trap 'rm -rf --one-file-system "$making"' EXIT
	echo "debian-root: making $tree" >&2
	debootstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" "$SUITE" "$making/root" "$MIRROR" >"$making/log" 2>&1 ||
		{ tail -20 "$making/log" >&2; echo "debian-root: debootstrap failed" >&2; exit 1; }
	# A host is booted from it for minutes: nothing to do by itself, nothing to log in.
	rm -f "$making/root/etc/machine-id" "$making"/root/var/cache/apt/archives/*.deb
	: >"$making/root/etc/machine-id"
	ln -sf /dev/null "$making/root/etc/systemd/system/nginx.service"
	ln -sf /dev/null "$making/root/etc/systemd/system/console-getty.service"
	ln -sf /dev/null "$making/root/etc/systemd/system/apt-daily.timer"
	ln -sf /dev/null "$making/root/etc/systemd/system/apt-daily-upgrade.timer"
	mv "$making/root" "$tree"
fi
echo "$tree"

#!/bin/bash
# Installs the Debian packages that a step needs: setup.sh build|test|package|balancer.
# Without root, or without apt, it names what is missing.
set -euo pipefail

build=(gcc libc6-dev)
balancer=(nginx libnginx-mod-stream)
test=(postfix swaks "${balancer[@]}" haproxy keepalived bind9-utils nftables iproute2 python3 'libpython3.*-testsuite' spamassassin)
package=(debootstrap systemd-container iproute2 man-db lintian rpm)

case ${1:-} in
build) wanted=("${build[@]}") ;;
test) wanted=("${build[@]}" "${test[@]}") ;;
package) wanted=("${build[@]}" "${package[@]}") ;;
balancer) wanted=("${balancer[@]}") ;;
*) echo "usage: setup.sh build|test|package|balancer" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
	[[ $1 == build ]] && command -v "${CC:-gcc}" >/dev/null && exit 0
	echo "setup: this is not Debian; install what matches: ${wanted[*]}" >&2
	exit 0
fi

missing=()
for package in "${wanted[@]}"; do # a package whose name holds its version is a pattern
	dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
((${#missing[@]})) || exit 0

if ((EUID != 0)); then
	echo "setup: missing packages; install them with:" >&2
	echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# A mail server that starts by itself would take port 25 of the developer's
# machine; the tests start their own. Services are not started while we install.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	trap 'rm -f "$policy"' EXIT
fi
apt-get -qq update
for i in "${!missing[@]}"; do
	[[ ${missing[i]} == *'*'* ]] || continue
	missing[i]=$(apt-cache search --names-only "^${missing[i]//\*/[0-9]+}\$" | awk '{print $1}' | sort -V | tail -1)
done
apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null

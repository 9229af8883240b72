#!/bin/bash
# Turns what git describe says (version.sh v1.2.3-5-gabc1234-dirty) into a version
# that dpkg and rpm take, and that grows with every commit:
#   v1.2.3             1.2.3
#   v1.3.0-rc1         1.3.0~rc1           before 1.3.0
#   v1.2.3-5-gabc1234  1.2.3+5.gabc1234    after 1.2.3
#   abc1234            0~git417.abc1234    no tag yet: the number of commits
# -dirty becomes +dirty.
set -euo pipefail

version=${1:?usage: version.sh VERSION} dirty=
[[ $version == *-dirty ]] && dirty=+dirty version=${version%-dirty}

if [[ $version =~ ^[0-9a-f]{7,40}$ ]]; then
	version="0~git$(git rev-list --count HEAD 2>/dev/null || echo 0).$version"
elif [[ $version =~ ^v?([0-9].*)$ ]]; then
	version=${BASH_REMATCH[1]} commits=
	[[ $version =~ ^(.*)-([0-9]+)-g([0-9a-f]+)$ ]] && version=${BASH_REMATCH[1]} commits="+${BASH_REMATCH[2]}.g${BASH_REMATCH[3]}"
	version=${version//-/\~}$commits
else
	version="0~$version"
fi
echo "${version//[^A-Za-z0-9.+~]/.}$dirty"

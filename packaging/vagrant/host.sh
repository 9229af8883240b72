#!/bin/bash
# Runs on a host of the Vagrantfile, as root:
#
#   install NAME FRONT CHAIN   the package of /tmp/chainmail.deb and the configuration
#   member                     yes or no: does it belong to a cluster already?
#   join PEER new|replace      join by a member; the token is on standard input
#   balance PEER…              be the balancer; the token is on standard input
#   start                      start the services, now and at each boot
#
# Each may be repeated. install leaves this script as /usr/local/sbin/chainmail-host.
set -euo pipefail

config=/etc/chainmail/chainmail.yaml
self=/usr/local/sbin/chainmail-host
kept=/var/lib/chainmail-host # name, front, chain; the checksum of the package

recall() { read -r name front chain <"$kept/who"; }

install() {
	name=$1 front=$2 chain=$3
	mkdir -p "$kept"
	[[ ${BASH_SOURCE[0]} == "$self" ]] || command install -m 755 "${BASH_SOURCE[0]}" "$self"
	echo "$name $front $chain" >"$kept/who"
	package
	rm -f /tmp/chainmail.deb
	case $name in
	lb) nginx ;;
	*) configuration >"$config" ;;
	esac
}

# package installs or upgrades; the same package again is left alone. Nothing is
# fetched when nothing is missing, so a host without a way out is provisioned too.
package() {
	local sum
	sum=$(sha256sum /tmp/chainmail.deb | cut -d' ' -f1)
	[[ $sum != "$(cat "$kept/deb" 2>/dev/null)" ]] || return 0
	export DEBIAN_FRONTEND=noninteractive
	apt_get install --reinstall --allow-downgrades /tmp/chainmail.deb
	echo "$sum" >"$kept/deb"
	chainmail version
}

apt_get() {
	apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold "$@" </dev/null
}

# nginx is Debian's. It reads the pieces that chainmail-lb-watch writes.
nginx() {
	! dpkg-query -W -f '${Status}\n' libnginx-mod-stream 2>/dev/null | grep -q 'ok installed' || return 0
	apt-get -q update
	apt_get install nginx-light libnginx-mod-stream
}

# configuration: mail from clients comes in on the front network, mail and all talk
# of the members on the chain network; HTTP is on both.
configuration() {
	echo "# Written by packaging/vagrant/host.sh."
	echo "name: $name"
	if [[ $name == witness ]]; then
		echo "role: witness"
	else
		echo "smtp: $front:25"
		echo "chain: $chain:8091"
	fi
	cat <<-END
		gossip: $chain:8092
		raft: $chain:8093
		http: ":8025"
		advertise: {http: $chain}
	END
}

member() {
	recall
	if [[ $name == lb ]]; then
		[[ -s /etc/chainmail/lb.token ]] && echo yes || echo no
	else
		[[ -d /var/lib/chainmail/cluster ]] && echo yes || echo no
	fi
}

join() {
	recall
	local flags=()
	[[ $2 == new ]] || flags+=(--replace)
	[[ $name != witness ]] || flags+=(--witness)
	chainmail join-node --name "$name" --config "$config" --data-dir /var/lib/chainmail --peer "$1" --token - "${flags[@]}"
}

balance() {
	recall
	local peer
	{
		echo "# Written by packaging/vagrant/host.sh."
		echo "peer:"
		for peer in "$@"; do echo "  - $peer"; done
		echo "token-file: /etc/chainmail/lb.token"
		echo "smtp: $front:25"
		echo "http: $front:8025"
		echo "metrics: 127.0.0.1:8026"
	} >/etc/chainmail/lb.yaml
	(umask 077 && cat >/etc/chainmail/lb.token)
}

start() {
	recall
	if [[ $name == lb ]]; then
		systemctl -q enable --now nginx chainmail-lb-watch
	else
		systemctl -q enable --now chainmail
	fi
}

verb=${1:-}
case $verb in
install | member | join | balance | start) shift; "$verb" "$@" ;;
*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

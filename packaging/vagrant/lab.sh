#!/bin/bash
# Runs libvirt where no service manager does, such as in a container or on a
# small build machine, for `vagrant up` with the libvirt provider:
#
#   lab.sh install     install what Vagrant with libvirt needs (Debian, root)
#   lab.sh start       start libvirt in a network namespace of its own
#   lab.sh run CMD…    run a command there: vagrant, virsh, ssh, the test
#   lab.sh status      what runs
#   lab.sh stop        stop the hosts, libvirt and the namespace
#   lab.sh purge       stop, and delete the disks and images of the hosts too
#   lab.sh needed      exit code 0 when libvirt can be had here only by start
#
# Everything is in the namespace, so its networks collide with none of this
# machine, and no packet of the hosts leaves it. The hosts are emulated
# (LIBVIRT_DRIVER=qemu), unless you say LIBVIRT_DRIVER=kvm.
set -euo pipefail

namespace=chainmail-lab
state=/run/chainmail-lab
uri=qemu:///system
packages=(vagrant vagrant-libvirt qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-clients
	dnsmasq-base nftables debootstrap extlinux syslinux-common parted e2fsprogs openssh-client rsync)

say() { echo "lab: $*" >&2; }
die() { say "$@"; exit 1; }
inside() { ip netns exec "$namespace" "$@"; }
root() { ((EUID == 0)) || die "$1 needs root"; }

# alive tells whether the process that wrote the pid file $1 still runs as $2.
alive() {
	local pid
	pid=$(cat "$state/$1.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]]
}

# end stops the daemon $1 by the pid that it wrote, and waits for its end.
end() {
	alive "$1" || return 0
	local pid
	pid=$(cat "$state/$1.pid")
	kill "$pid"
	for _ in {1..50}; do [[ -e /proc/$pid ]] || return 0; sleep 0.2; done
	kill -9 "$pid"
}

# needed: no libvirtd answers, and no service manager could start one.
needed() {
	((EUID == 0)) && command -v libvirtd >/dev/null && [[ ! -d /run/systemd/system ]]
}

install() {
	root install
	command -v apt-get >/dev/null || die "this is not Debian; install what matches: ${packages[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	apt-get -qq install -y --no-install-recommends "${packages[@]}" </dev/null >/dev/null
	say "installed: $(dpkg-query -W -f '${Package} ${Version}, ' vagrant vagrant-libvirt qemu-system-x86 libvirt-daemon-system | sed 's/, $//')"
}

# daemon starts libvirtd, as "$@" tells how, and waits until it answers.
daemon() {
	"$@" libvirtd -d --pid-file "$state/libvirtd.pid"
	for _ in {1..100}; do
		virsh -q -c "$uri" version >/dev/null 2>&1 && return 0
		sleep 0.2
	done
	die "libvirtd does not answer; see /var/log/libvirt and dmesg"
}

# prime fills libvirt's cache of what the emulator can do, with the KVM device
# out of sight. A device that is there and does not work would be probed again
# at every look otherwise, for seconds. The daemon that sees it hidden is
# another one than that of the hosts: a domain does not start beside the mount.
prime() {
	[[ -e /dev/kvm && ${LIBVIRT_DRIVER:-qemu} != kvm ]] || return 0
	say "asking the emulator what it can do"
	rm -f /var/cache/libvirt/qemu/capabilities/*.xml
	touch "$state/nothing"
	chmod 000 "$state/nothing"
	daemon ip netns exec "$namespace" unshare --mount --propagation private sh -c \
		'mount --bind "$0" /dev/kvm && exec "$@"' "$state/nothing"
	virsh -q -c "$uri" domcapabilities --virttype qemu >/dev/null
	end libvirtd
}

start() {
	root start
	command -v libvirtd >/dev/null || die "libvirt is not installed: packaging/vagrant/lab.sh install"
	if alive libvirtd; then
		say "is running already; stop it with: packaging/vagrant/lab.sh stop"
		return
	fi
	needed || die "this machine has a service manager: let it run libvirtd (systemctl start libvirtd)"
	! virsh -q -c "$uri" version >/dev/null 2>&1 || die "a libvirtd that this script did not start is running: use that one"
	install_state
	alive virtlogd || inside virtlogd -d --pid-file "$state/virtlogd.pid"
	prime
	daemon inside
	pool
	say "libvirt $(inside virsh -q -c "$uri" version | awk '/Using library/ { print $NF }') runs in the network namespace $namespace"
}

install_state() {
	mkdir -p "$state" /var/cache/libvirt/qemu/capabilities
	ip netns list | grep -qw "$namespace" || ip netns add "$namespace"
	inside ip link set lo up
}

# pool defines where the disks of the hosts are, as a service's first start would.
pool() {
	virsh -q -c "$uri" pool-info default >/dev/null 2>&1 && return 0
	virsh -q -c "$uri" pool-define-as default dir --target /var/lib/libvirt/images >/dev/null
	virsh -q -c "$uri" pool-build default >/dev/null
	virsh -q -c "$uri" pool-start default >/dev/null
}

run() {
	root run
	alive libvirtd || die "is not running: packaging/vagrant/lab.sh start"
	export LIBVIRT_DRIVER=${LIBVIRT_DRIVER:-qemu} VAGRANT_DEFAULT_PROVIDER=libvirt LIBVIRT_DEFAULT_URI=$uri
	export BOX=${BOX:-chainmail-$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")} MEMORY=${MEMORY:-512}
	exec ip netns exec "$namespace" "$@"
}

status() {
	if ! alive libvirtd; then
		say "is not running"
		return 1
	fi
	say "libvirtd is process $(cat "$state/libvirtd.pid") in the network namespace $namespace"
	inside virsh -q -c "$uri" list --all
	inside virsh -q -c "$uri" net-list --all
}

stop() {
	root stop
	if alive libvirtd; then
		for domain in $(virsh -q -c "$uri" list --name); do virsh -q -c "$uri" destroy "$domain" >&2; done
		[[ ${1:-} != purge ]] || purge_disks
		for net in $(virsh -q -c "$uri" net-list --name); do virsh -q -c "$uri" net-destroy "$net" >&2; done
	elif [[ ${1:-} == purge ]]; then
		die "purge asks libvirt for what there is: start it first"
	fi
	end libvirtd
	end virtlogd
	! ip netns list | grep -qw "$namespace" || ip netns delete "$namespace"
	rm -rf "$state"
	say "stopped"
}

# purge_disks deletes all hosts, networks and images that the lab's libvirt has.
purge_disks() {
	local name
	for name in $(virsh -q -c "$uri" list --all --name); do virsh -q -c "$uri" undefine --nvram --remove-all-storage "$name" >&2; done
	for name in $(virsh -q -c "$uri" net-list --all --name); do
		virsh -q -c "$uri" net-destroy "$name" >/dev/null 2>&1 || true
		virsh -q -c "$uri" net-undefine "$name" >&2
	done
	virsh -q -c "$uri" pool-refresh default >/dev/null
	for name in $(virsh -q -c "$uri" vol-list default | awk '{ print $1 }'); do virsh -q -c "$uri" vol-delete --pool default "$name" >&2; done
}

case ${1:-} in
install | start | status | needed) "$1" ;;
stop) stop ;;
purge) stop purge ;;
run) shift; run "$@" ;;
*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

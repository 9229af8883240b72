#!/bin/bash
# make vagrant-test: breaks the cluster of the Vagrantfile and checks that no
# acknowledged mail is lost; see docs/vagrant.md. Arguments go to the test program.
#
# It uses the libvirt or VirtualBox of this machine. As root on a machine where
# nothing runs libvirt, it starts the lab of lab.sh for as long as it takes, and
# builds a box for it when there is none.
#
#   KEEP=1   leave hosts and lab running at the end. Hosts that were there before
#            are left in any case.
set -euo pipefail
cd "$(dirname "$0")/../.."

lab=packaging/vagrant/lab.sh
log=bin/vagrant.log
in_lab=()  # the command that enters the lab, when there is one
started=   # the lab, by us
flags=()   # of the test program
tmp=$(mktemp -d)

say() { echo "vagrant-test: $*" >&2; }

cleanup() {
	rm -rf "$tmp"
	[[ -z $started || ${KEEP:-} == 1 ]] || "$lab" stop
}

# enter makes a lab where there is nothing else.
enter() {
	"$lab" needed || return 0
	in_lab=("$lab" run)
	"$lab" status >/dev/null 2>&1 || { "$lab" start; started=1; }
	local box
	box=$("$lab" run printenv BOX)
	vagrant box list | grep -q "^$box " || BOX=$box packaging/vagrant/box.sh
	# Emulated hosts boot for a minute, and live on what is left of a few cores.
	flags+=(-patience 15m -rate 5)
}

# mine makes the test destroy its hosts at the end, unless they are somebody else's:
# there already.
mine() {
	local state
	state=$("${in_lab[@]}" vagrant status --machine-readable | grep ',state,')
	if grep -qv ',not_created' <<<"$state"; then
		say "hosts are there already: they are used, and left running"
	elif [[ ${KEEP:-} != 1 ]]; then
		flags+=(-destroy)
	fi
}

main() {
	command -v vagrant >/dev/null || { say "Vagrant is not installed. On Debian: sudo $lab install"; exit 1; }
	trap cleanup EXIT
	enter
	CGO_ENABLED=1 go build -o "$tmp/test" ./testcluster/vagrant
	mine
	mkdir -p "${log%/*}"
	: >"$log"
	say "what Vagrant prints goes to $log"
	"${in_lab[@]}" "$tmp/test" -log "$log" "${flags[@]}" "$@"
}

main "$@"
exit

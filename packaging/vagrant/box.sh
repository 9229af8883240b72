#!/bin/bash
# Builds a small Debian box for Vagrant's libvirt provider from the mirror that
# this machine's apt uses, and adds it to Vagrant: for machines that cannot
# download one. Root is needed (a loop device and a chroot).
#
#   BOX      name of the box        (chainmail-SUITE)
#   SUITE    Debian's release       (the one this machine runs)
#   MIRROR   where to take it from  (the mirror in apt's configuration)
#   BOXDIR   where FILE.box is kept (~/.cache/chainmail/vagrant)
set -euo pipefail

say() { echo "vagrant-box: $*" >&2; }
die() { say "$@"; exit 1; }

suite=${SUITE:-$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")}
box=${BOX:-chainmail-$suite}
boxdir=${BOXDIR:-${XDG_CACHE_HOME:-$HOME/.cache}/chainmail/vagrant}
file=$boxdir/$box.box
gigabytes=8 # of disk that a host sees; the box holds only what is used

# What a host needs to boot and to be driven by Vagrant, and what the balancer
# needs, so that hosts without a way to a mirror can be provisioned.
packages=(linux-image-cloud-amd64 systemd-sysv dbus udev kmod openssh-server sudo rsync
	ifupdown isc-dhcp-client iproute2 iputils-ping nftables ca-certificates adduser curl
	nginx-light libnginx-mod-stream)
tools=(debootstrap parted extlinux qemu-img mkfs.ext4 ssh-keygen vagrant)

((EUID == 0)) || die "run as root: a box is made in a chroot and on a loop device"
missing=()
for tool in "${tools[@]}"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
[[ -e /usr/lib/syslinux/mbr/mbr.bin ]] || missing+=(syslinux-common)
((${#missing[@]} == 0)) || die "not found: ${missing[*]}; packaging/vagrant/lab.sh install"

mirror=${MIRROR:-$(apt-get indextargets --format '$(CODENAME) $(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
	awk -v suite="$suite" '$1 == suite && $2 == "Debian" { print $3; exit }')}
[[ $mirror ]] || die "apt's configuration names no mirror of Debian $suite: give MIRROR=URL or another SUITE"

work=$(mktemp -d /var/tmp/chainmail-box.XXXXXX)
root=$work/root loop=
cleanup() {
	for mount in "$work/disk" "$root/dev" "$root/proc" "$root/sys"; do
		mountpoint -q "$mount" && umount "$mount"
	done
	[[ -z $loop ]] || losetup -d "$loop"
	rm -rf --one-file-system "$work"
}
trap cleanup EXIT

# system unpacks Debian into $root.
system() {
	debootstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" "$suite" "$root" "$mirror" >"$work/log" 2>&1 ||
		{ tail -20 "$work/log" >&2; die "debootstrap failed"; }
}

# login lets Vagrant in, as it expects a new box: user vagrant, sudo without a
# password, and the key that everybody has (only hosts of a lab are to be made of it).
login() {
	vagrant box list >/dev/null 2>&1 # lays the key down
	local home=${VAGRANT_HOME:-$HOME/.vagrant.d} key
	for key in "$home"/insecure_private_keys/*rsa* "$home/insecure_private_key"; do [[ -e $key ]] && break; done
	chroot "$root" useradd --create-home --shell /bin/bash vagrant
	install -d -m 700 "$root/home/vagrant/.ssh"
	ssh-keygen -y -f "$key" >"$root/home/vagrant/.ssh/authorized_keys"
	chmod 600 "$root/home/vagrant/.ssh/authorized_keys"
	chroot "$root" chown -R vagrant: /home/vagrant/.ssh
	echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
	chmod 440 "$root/etc/sudoers.d/vagrant"
	# Hosts made of one box do not share a key: each makes its own, a cheap one.
	rm -f "$root"/etc/ssh/ssh_host_*
	printf 'UseDNS no\nHostKey /etc/ssh/ssh_host_ecdsa_key\n' >"$root/etc/ssh/sshd_config.d/box.conf"
	install -d "$root/etc/systemd/system/ssh.service.d"
	printf '[Service]\nExecStartPre=\nExecStartPre=/bin/sh -c "%s"\nExecStartPre=/usr/sbin/sshd -t\n' \
		'test -s /etc/ssh/ssh_host_ecdsa_key || ssh-keygen -q -t ecdsa -N \"\" -f /etc/ssh/ssh_host_ecdsa_key' \
		>"$root/etc/systemd/system/ssh.service.d/key.conf"
}

# settle makes $root a host: disk, network, kernel, a quiet start.
settle() {
	echo "$box" >"$root/etc/hostname"
	echo "127.0.0.1 localhost" >"$root/etc/hosts"
	echo '/dev/vda1 / ext4 noatime,errors=remount-ro 0 1' >"$root/etc/fstab"
	printf 'auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n' >"$root/etc/network/interfaces"
	: >"$root/etc/machine-id"
	ln -sf /etc/machine-id "$root/var/lib/dbus/machine-id"
	install -d "$root/var/log/journal"
	# The balancer's nginx is started when there is something to balance.
	chroot "$root" systemctl -q disable nginx
	chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
	sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
	printf '%s\n' virtio_pci virtio_blk virtio_net virtio_rng ext4 >>"$root/etc/initramfs-tools/modules"
	mount --bind /dev "$root/dev"
	mount -t proc proc "$root/proc"
	mount -t sysfs sysfs "$root/sys"
	chroot "$root" update-initramfs -u >"$work/log" 2>&1 || { cat "$work/log" >&2; die "update-initramfs failed"; }
	umount "$root/dev" "$root/proc" "$root/sys"
	chroot "$root" apt-get clean
	rm -rf "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,info}/*
}

# disk writes $root to a bootable image. extlinux cannot read two of the
# features that mkfs switches on.
disk() {
	truncate -s "${gigabytes}G" "$work/disk.raw"
	parted -s "$work/disk.raw" mklabel msdos mkpart primary ext4 1MiB 100% set 1 boot on 2>/dev/null
	dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/disk.raw" bs=440 count=1 conv=notrunc status=none
	loop=$(losetup -f --show -o $((1024 * 1024)) "$work/disk.raw")
	mkfs.ext4 -q -O '^64bit,^metadata_csum' "$loop"
	mkdir -p "$work/disk"
	mount "$loop" "$work/disk"
	cp -a "$root/." "$work/disk/"
	cat >"$work/disk/boot/extlinux.conf" <<-END
		default linux
		timeout 1
		label linux
		  kernel /vmlinuz
		  append initrd=/initrd.img root=/dev/vda1 ro net.ifnames=0 console=tty0 console=ttyS0 quiet
	END
	extlinux --install "$work/disk/boot" 2>/dev/null
	umount "$work/disk"
	losetup -d "$loop"
	loop=
}

# pack makes the file that vagrant box add takes.
pack() {
	qemu-img convert -c -f raw -O qcow2 "$work/disk.raw" "$work/box.img"
	printf '{"provider":"libvirt","format":"qcow2","virtual_size":%d}\n' "$gigabytes" >"$work/metadata.json"
	printf 'Vagrant.configure("2") { |config| config.vm.synced_folder ".", "/vagrant", disabled: true }\n' >"$work/Vagrantfile"
	mkdir -p "$boxdir"
	tar -C "$work" -czf "$file.new" metadata.json Vagrantfile box.img
	mv "$file.new" "$file"
}

say "Debian $suite with a kernel and nginx, into $file: one to five minutes"
start=$SECONDS
for step in system login settle disk pack; do
	$step
	say "$step: $((SECONDS - start)) s"
done
vagrant box add --force --name "$box" --provider libvirt "$file" >"$work/log" 2>&1 ||
	{ cat "$work/log" >&2; die "Vagrant does not take the box $file"; }
say "box $box, $(du -h "$file" | cut -f1), Debian $(cat "$root/etc/debian_version"), in $((SECONDS - start)) s"

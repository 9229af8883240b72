package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// What only the provider can do: pull cables, cut the power.

// cable pulls a host's cable, or puts it back: the link goes down at the virtual
// switch, as the host sees it when somebody trips over the cable.
func (d *drill) cable(ctx context.Context, name string, network netip.Prefix, plugged bool) error {
	switch d.provider {
	case "libvirt":
		return d.libvirtCable(ctx, name, network, plugged)
	case "virtualbox":
		return d.virtualboxCable(ctx, name, network, plugged)
	}
	return fmt.Errorf("no way to pull a cable with the provider %s: use libvirt or virtualbox", d.provider)
}

func (d *drill) libvirtCable(ctx context.Context, name string, network netip.Prefix, plugged bool) error {
	domain, err := d.lab.id(name, d.provider)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "virsh", "-c", "qemu:///system", "-q", "domiflist", domain).CombinedOutput()
	if err != nil {
		return fmt.Errorf("virsh domiflist %s: %w: %s", name, err, out)
	}
	card := parseCards(string(out), network)
	if card == "" {
		return fmt.Errorf("%s has no card on the network of %v:\n%s", name, network, out)
	}
	state := "down"
	if plugged {
		state = "up"
	}
	out, err = exec.CommandContext(ctx, "virsh", "-c", "qemu:///system", "-q", "domif-setlink", domain, card, state).CombinedOutput()
	if err != nil {
		return fmt.Errorf("virsh domif-setlink %s %s %s: %w: %s", name, card, state, err, out)
	}
	return nil
}

// parseCards finds the card on a network of the Vagrantfile, whose name ends with
// the network's first three numbers.
func parseCards(out string, network netip.Prefix) string {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) >= 5 && strings.HasSuffix(f[2], "-"+threeNumbers(network)) {
			return f[4] // the MAC: of a domain that does not run too
		}
	}
	return ""
}

func threeNumbers(network netip.Prefix) string {
	text := network.Addr().String()
	return text[:strings.LastIndexByte(text, '.')]
}

// virtualboxCable counts on the order of the cards in the Vagrantfile: Vagrant's
// own, front, chain.
func (d *drill) virtualboxCable(ctx context.Context, name string, network netip.Prefix, plugged bool) error {
	machine, err := d.lab.id(name, d.provider)
	if err != nil {
		return err
	}
	card, state := "setlinkstate2", "off"
	if network == d.networks["chain"] {
		card = "setlinkstate3"
	}
	if plugged {
		state = "on"
	}
	out, err := exec.CommandContext(ctx, "VBoxManage", "controlvm", machine, card, state).CombinedOutput()
	if err != nil {
		return fmt.Errorf("VBoxManage controlvm %s %s %s: %w: %s", name, card, state, err, out)
	}
	return nil
}

// powerCut ends a host as a pulled plug does. With libvirt `vagrant halt -f` asks the
// host to shut down in order first, and that is not what is to be shown.
func (d *drill) powerCut(ctx context.Context, name string) error {
	if d.provider != "libvirt" {
		return d.vagrant(ctx, "halt", "-f", name)
	}
	domain, err := d.lab.id(name, d.provider)
	if err != nil {
		return err
	}
	d.say("cutting the power of %s", name)
	out, err := exec.CommandContext(ctx, "virsh", "-c", "qemu:///system", "-q", "destroy", domain).CombinedOutput()
	if err != nil {
		return fmt.Errorf("virsh destroy %s: %w: %s", name, err, out)
	}
	return nil
}

// id is the provider's own name of a host, as Vagrant noted it.
func (l *lab) id(name, provider string) (string, error) {
	data := os.Getenv("VAGRANT_DOTFILE_PATH")
	if data == "" {
		data = filepath.Join(l.dir, ".vagrant")
	}
	id, err := os.ReadFile(filepath.Join(data, "machines", name, provider, "id"))
	if err != nil {
		return "", fmt.Errorf("%s is not there: %w", name, err)
	}
	return strings.TrimSpace(string(id)), nil
}

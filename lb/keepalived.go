package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
)

// Keepalived is one of several balancers that share addresses by VRRP (RFC
// 9568). It knows nothing of the cluster.
type Keepalived struct {
	Interface string         // that has the shared addresses, such as eth0
	Own       netip.Addr     // this balancer's address there
	Others    []netip.Addr   // the other balancers' addresses
	Shared    []netip.Prefix // the addresses that one of them has at a time
	Router    int            // VRRP's number of the group, 1 to 255, the same on all
	Priority  int            // 1 to 254; the highest is first to have the addresses
	Check     string         // program, with its arguments, that fails when this balancer does not balance
	CheckUser string         // who runs it
}

var (
	interfacePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,14}$`)
	commandPattern   = regexp.MustCompile(`^/[A-Za-z0-9_@%+=:,./~\[\] -]*$`)
)

// Validate says what is wrong.
func (k Keepalived) Validate() error {
	switch {
	case !k.Own.IsValid() || k.Own.Zone() != "":
		return errors.New("--own is missing: give this balancer's own address in the network of the shared one")
	case k.Interface == "":
		return errors.New("--interface is missing: name the network interface of the shared address, such as eth0")
	case !interfacePattern.MatchString(k.Interface):
		return fmt.Errorf("--interface is %q: name the network interface of the shared address, such as eth0", k.Interface)
	case len(k.Others) == 0:
		return errors.New("--other is missing: give the address of the other balancer")
	case len(k.Shared) == 0:
		return errors.New("--shared is missing: give the address that clients use, such as 192.0.2.100/24")
	case k.Router < 1 || k.Router > 255:
		return fmt.Errorf("--router is %d: use a number from 1 to 255 that no other VRRP group of the network has", k.Router)
	case k.Priority < 1 || k.Priority > 254:
		return fmt.Errorf("--priority is %d: use a number from 1 to 254, another one on each balancer", k.Priority)
	case !commandPattern.MatchString(k.Check):
		return fmt.Errorf("--check is %q: name a program by its whole path, with plain arguments", k.Check)
	case !userPattern.MatchString(k.CheckUser):
		return fmt.Errorf("--check-user is %q: name a user of this machine", k.CheckUser)
	}
	for _, o := range k.Others {
		if o == k.Own {
			return fmt.Errorf("--other is %s, which is --own: give the address of the other balancer", o)
		}
		if o.Is4() != k.Own.Is4() || o.Zone() != "" {
			return fmt.Errorf("--other %s is of another family than --own %s", o, k.Own)
		}
	}
	for _, s := range k.Shared {
		if s.Addr() == k.Own {
			return fmt.Errorf("--shared is %s, which is --own: the shared address must be one that no machine has for itself", s.Addr())
		}
	}
	return nil
}

// Same and Excluded are the shared addresses of VRRP's own family, which it
// announces, and the others, which go with them.
func (k Keepalived) Same() []netip.Prefix { return k.family(k.Own.Is4()) }

// Excluded: see Same.
func (k Keepalived) Excluded() []netip.Prefix { return k.family(!k.Own.Is4()) }

func (k Keepalived) family(v4 bool) (list []netip.Prefix) {
	for _, s := range k.Shared {
		if s.Addr().Is4() == v4 {
			list = append(list, s)
		}
	}
	return list
}

// RenderKeepalived is keepalived.conf.
func RenderKeepalived(k Keepalived) ([]byte, error) {
	if err := k.Validate(); err != nil {
		return nil, err
	}
	if len(k.Same()) == 0 {
		return nil, fmt.Errorf("no --shared address is of the family of --own %s, in which the balancers speak: add one", k.Own)
	}
	text, err := execute("keepalived.tmpl", k)
	return []byte(text), err
}

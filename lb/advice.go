package lb

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
)

// refusedAddress is how nginx says that it cannot have an address, with the
// system's number of the reason.
var refusedAddress = regexp.MustCompile(`bind\(\) to (\S+) failed \((\d+):`)

// The reasons, by Linux' numbers.
const (
	noAccess     = 13
	inUse        = 98
	notAvailable = 99
)

// firstFree is the first port that needs no privilege.
const firstFree = 1024

// advise adds to an error in which nginx cannot have an address what can be done
// about it.
func advise(err error) error {
	m := refusedAddress.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	host, portText, errAddress := net.SplitHostPort(m[1])
	port, errPort := strconv.Atoi(portText)
	if errAddress != nil || errPort != nil {
		return err
	}
	switch number, _ := strconv.Atoi(m[2]); { // digits
	case number == inUse:
		return fmt.Errorf("%w: another program has port %d: ss -ltnp 'sport = :%d' tells which; end it, or choose another port", err, port, port)
	case number == notAvailable:
		return fmt.Errorf("%w: %s is no address of this machine: ip -brief address shows those that are; or listen on all, as with :%d", err, host, port)
	case number == noAccess && port < firstFree:
		return fmt.Errorf("%w: ports below %d need root or CAP_NET_BIND_SERVICE, which the packaged service has; or choose another port", err, firstFree)
	}
	return err
}

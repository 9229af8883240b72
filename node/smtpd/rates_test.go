package smtpd

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestRatesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRates(60)
		address := func(n uint32) netip.Addr {
			return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
		}
		busy := address(1 << 24)
		for range 60 {
			if !r.allow(busy) {
				t.Fatal("refused within the limit")
			}
		}
		if r.allow(busy) {
			t.Error("allowed beyond the limit")
		}
		time.Sleep(10 * time.Second)
		// Many others, all of whom sent a while ago.
		for n := range uint32(maxClientsRemembered - 1) {
			r.allow(address(n))
		}
		time.Sleep(5 * time.Second)
		for n := range uint32(100) {
			r.allow(address(1<<25 + n))
		}
		if n := len(r.clients); n > maxClientsRemembered {
			t.Errorf("%d clients are remembered", n)
		}
		for range 15 {
			if !r.allow(busy) {
				t.Error("the allowance does not come back")
			}
		}
		if r.allow(busy) {
			t.Error("a busy client was forgotten")
		}
	})
}

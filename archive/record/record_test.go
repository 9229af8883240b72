package record

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var receipts = map[string]Receipt{
	"smallest": {Position: Position{1, 1}, ReceivedAt: time.Unix(0, 0).UTC()},
	"plain": {
		Position:   Position{0x4f2a9c1be0d37786, 42},
		ReceivedAt: time.Date(2026, 11, 23, 14, 5, 6, 789, time.UTC),
		Hash:       Hash{1, 2, 3},
		Size:       150 << 20,
		Body:       1 << 40,
		Envelope: Envelope{
			From: "a@example.com", To: []string{"b@example.com", "ü@example.org"},
			Client: "192.0.2.1:40000", Helo: "mx.example.com", TLS: "TLS1.3 X", User: "u", Connector: "smtp",
		},
	},
	"journal": {
		Position:   Position{2, 1 << 50},
		ReceivedAt: time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC),
		Envelope: Envelope{Connector: "exchange", Journal: &Journal{
			Inner: Hash{9}, InnerSize: 12, Sender: "s@example.com", Subject: "hello", MessageID: "<1@x>", OnBehalfOf: "boss@example.com",
			Recipients: []JournalRecipient{
				{Address: "a@example.com", Role: "To", Expanded: "all@example.com"},
				{Address: "b@example.com", Role: "Bcc", Forwarded: "c@example.com"},
			},
		}},
	},
}

func TestReceiptRoundTrip(t *testing.T) {
	for name, want := range receipts {
		t.Run(name, func(t *testing.T) {
			b := AppendReceipt([]byte("x"), &want)[1:]
			got, err := DecodeReceipt(want.Position, b)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("decoded receipt differs (-want +got):\n%s", d)
			}
			for n := range b {
				if _, err := DecodeReceipt(want.Position, b[:n]); !errors.Is(err, ErrMalformed) {
					t.Fatalf("first %d of %d bytes: error %v, want ErrMalformed", n, len(b), err)
				}
			}
			if _, err := DecodeReceipt(want.Position, append(b, 0)); !errors.Is(err, ErrMalformed) {
				t.Fatalf("one byte too many: error %v, want ErrMalformed", err)
			}
		})
	}
}

// FuzzDecodeReceipt: no input may panic or allocate without bound, and what is
// accepted has exactly one encoding.
func FuzzDecodeReceipt(f *testing.F) {
	for _, r := range receipts {
		f.Add(AppendReceipt(nil, &r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeReceipt(Position{1, 1}, b)
		if err != nil {
			return
		}
		if again := AppendReceipt(nil, &r); !bytes.Equal(again, b) {
			t.Fatalf("accepted %x, which encodes as %x", b, again)
		}
	})
}

func TestParsePosition(t *testing.T) {
	p := Position{0x0f2a9c1be0d37786, 42}
	if got, err := ParsePosition(p.String()); err != nil || got != p {
		t.Fatalf("ParsePosition(%q) = %v, %v", p, got, err)
	}
	for _, bad := range []string{"", ":", "1:1", "0f2a9c1be0d37786", "0f2a9c1be0d37786:", "0f2a9c1be0d37786:0", "0f2a9c1be0d37786:-1", "xf2a9c1be0d37786:1", "0f2a9c1be0d37786:1:1", "+f2a9c1be0d37786:1"} {
		if got, err := ParsePosition(bad); err == nil {
			t.Errorf("ParsePosition(%q) = %v, want an error", bad, got)
		}
	}
}

func TestParseHash(t *testing.T) {
	h := Hash{0xab, 1}
	if got, err := ParseHash(h.String()); err != nil || got != h {
		t.Fatalf("ParseHash(%q) = %v, %v", h, got, err)
	}
	for _, bad := range []string{"", "ab", h.String()[1:] + "g", h.String() + "00"} {
		if _, err := ParseHash(bad); err == nil {
			t.Errorf("ParseHash(%q) gives no error", bad)
		}
	}
}

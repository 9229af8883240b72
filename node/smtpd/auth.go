package smtpd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"golang.org/x/crypto/bcrypt"
)

// AuthMechanisms is what EHLO announces (RFC 4954).
func (s *session) AuthMechanisms() []string {
	if s.mayAuth() != nil {
		return nil
	}
	return []string{sasl.Plain, "LOGIN"}
}

// Auth begins a login.
func (s *session) Auth(mechanism string) (sasl.Server, error) {
	if err := s.mayAuth(); err != nil {
		return nil, err
	}
	switch {
	case s.open:
		return nil, reply(503, 5, 5, 1, "AUTH not allowed during a mail transaction")
	case mechanism == sasl.Plain:
		return &plainLogin{check: s.login}, nil
	case mechanism == "LOGIN":
		return &promptedLogin{check: s.login}, nil
	}
	return nil, reply(504, 5, 5, 4, "unknown mechanism, use PLAIN or LOGIN")
}

// mayAuth refuses passwords where they could be read on the way.
func (s *session) mayAuth() error {
	l := s.gate.link
	switch {
	case l.connector.users == nil:
		return reply(503, 5, 5, 1, "authentication is not offered")
	case s.gate.secure == "" && !l.local():
		return reply(538, 5, 7, 11, "encryption required: STARTTLS first")
	}
	return nil
}

func (s *session) login(user, password string) error {
	l := s.gate.link
	if !l.connector.users.check(user, password) {
		l.log.Warn("login failed", slog.String("user", user))
		return l.refuse(reasonAuth, reply(535, 5, 7, 8, "user or password is wrong"))
	}
	s.user = user
	return nil
}

var errSASL = reply(501, 5, 5, 2, "malformed authentication response")

// plainLogin is the mechanism PLAIN (RFC 4616).
type plainLogin struct {
	check func(user, password string) error
}

func (p *plainLogin) Next(response []byte) (challenge []byte, done bool, err error) {
	if response == nil {
		return nil, false, nil
	}
	parts := bytes.Split(response, []byte{0})
	// Acting for another user (the first part) is not provided for.
	if len(parts) != 3 || len(parts[0]) > 0 && !bytes.Equal(parts[0], parts[1]) {
		return nil, false, errSASL
	}
	if err := p.check(string(parts[1]), string(parts[2])); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// promptedLogin is the mechanism LOGIN, which no RFC has and many clients use.
type promptedLogin struct {
	check func(user, password string) error
	user  string
	asked int
}

func (p *promptedLogin) Next(response []byte) (challenge []byte, done bool, err error) {
	if response == nil && p.asked == 0 {
		p.asked++
		return []byte("Username:"), false, nil
	}
	if p.user == "" {
		if len(response) == 0 {
			return nil, false, errSASL
		}
		p.user, p.asked = string(response), 2
		return []byte("Password:"), false, nil
	}
	if err := p.check(p.user, string(response)); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

var _ smtp.AuthSession = (*session)(nil)

// users is a file made by "htpasswd -B", read again when it changes.
type users struct {
	file string
	log  *slog.Logger
	// slots bounds how many passwords are compared at once: bcrypt is slow by
	// design, and receiving mail needs the processor too.
	slots chan struct{}

	mu      sync.Mutex
	checked time.Time
	info    fs.FileInfo
	hashes  map[string][]byte
	dummy   []byte // compared for unknown users, as costly as the others
}

func openUsers(file string, log *slog.Logger) (*users, error) {
	u := &users{file: file, log: log, slots: make(chan struct{}, 1)}
	if err := u.load(); err != nil {
		return nil, err
	}
	u.checked = time.Now()
	return u, nil
}

// check reports whether the password is the user's. It takes as long for users
// that do not exist, so that its time does not tell which do.
func (u *users) check(user, password string) bool {
	u.slots <- struct{}{}
	defer func() { <-u.slots }()
	hash, known := u.lookup(user)
	err := bcrypt.CompareHashAndPassword(hash, []byte(password))
	return known && err == nil
}

func (u *users) lookup(user string) (hash []byte, known bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); now.Sub(u.checked) >= time.Second {
		u.checked = now
		u.reload()
	}
	if hash, known = u.hashes[user]; known {
		return hash, true
	}
	return u.dummy, false
}

// reload reads the file again if it changed. One that cannot be read leaves
// the users as they were: a mistake in the file shall not stop the mail.
func (u *users) reload() {
	info, err := os.Stat(u.file)
	if err == nil && u.info != nil && os.SameFile(info, u.info) && info.ModTime().Equal(u.info.ModTime()) && info.Size() == u.info.Size() {
		return
	}
	if err == nil {
		err = u.load()
	}
	if err != nil {
		u.log.Error("users file not read again, the old one still counts", slog.String("file", u.file), slog.Any("err", err))
		u.info = info // say it once for each change
		return
	}
	u.log.Info("users file read again", slog.String("file", u.file), slog.Int("users", len(u.hashes)))
}

func (u *users) load() error {
	info, err := os.Stat(u.file)
	if err != nil {
		return fmt.Errorf("users file: %w: make it with: htpasswd -B -c %s USER", err, u.file)
	}
	text, err := os.ReadFile(u.file)
	if err != nil {
		return fmt.Errorf("users file: %w: let the node's user read it", err)
	}
	hashes, dearest, err := parseUsers(text)
	if err != nil {
		return fmt.Errorf("users file %s: %w: set a password with: htpasswd -B FILE USER", u.file, err)
	}
	dummy, err := bcrypt.GenerateFromPassword([]byte("nobody"), dearest)
	if err != nil {
		return fmt.Errorf("users file %s: %w", u.file, err)
	}
	u.info, u.hashes, u.dummy = info, hashes, dummy
	return nil
}

// CheckUsers says what is wrong with a users file, and nil when logins can use
// it. The error is one of reading, or names the line; only the former names
// the file.
func CheckUsers(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, _, err = parseUsers(text)
	return err
}

// parseUsers reads lines of "user:hash"; empty ones and those that begin with
// # are passed over. dearest is the highest cost of a hash.
func parseUsers(text []byte) (hashes map[string][]byte, dearest int, err error) {
	hashes = map[string][]byte{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		user, hash, _ := strings.Cut(line, ":")
		cost, err := bcrypt.Cost([]byte(hash))
		if err != nil || user == "" {
			return nil, 0, fmt.Errorf("line %d is not USER:BCRYPT-HASH", n)
		}
		hashes[user] = []byte(hash)
		dearest = max(dearest, cost)
	}
	if err := lines.Err(); err != nil {
		return nil, 0, err
	}
	if len(hashes) == 0 {
		return nil, 0, errors.New("no user in the file")
	}
	return hashes, dearest, nil
}

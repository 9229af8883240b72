package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// checkUsers reads an htpasswd file with bcrypt hashes ("name:$2y$…", one a
// line, empty lines and lines that start with # aside) and says what is wrong.
func checkUsers(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	users := 0
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, _ := strings.Cut(line, ":")
		if _, err := bcrypt.Cost([]byte(hash)); err != nil || name == "" {
			return fmt.Errorf("line %d is not USER:BCRYPT-HASH", n)
		}
		users++
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if users == 0 {
		return errors.New("no user in the file")
	}
	return nil
}

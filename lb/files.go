package lb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// File is a file of a balancer's configuration.
type File struct {
	Path string
	Text []byte
	// Support files are named in the others, such as the CA's certificate: they
	// must be there before the others are checked.
	Support bool
}

// Installer puts a configuration in force. After an error the one before is in
// force, as far as there was one.
type Installer interface {
	Install(ctx context.Context, files []File) error
}

// Candidate stands for the file to check in a check command.
const Candidate = "{}"

// Commands installs files for a balancer that somebody else runs.
type Commands struct {
	// Check is a shell command that fails for a bad configuration; empty: none. With
	// {} in it, it is run for each file before that gets its name. Without, it is run
	// when all files are in their places, which is what files need that are included
	// by another; those that were there come back when it fails.
	Check string
	// Reload is a shell command that lets the balancer read its files; empty: none.
	Reload string
	// Timeout is for each run of a command.
	Timeout time.Duration

	reload func(context.Context) error // in place of Reload
}

// Suffixes of files beside a configuration.
const (
	suffixNew     = ".new"     // being written
	suffixRefused = ".refused" // that the check refused, for people to look at
)

// Install checks, renames and reloads.
func (c Commands) Install(ctx context.Context, files []File) (err error) {
	var back undo
	before := "the one before stays"
	if !anyThere(files) {
		before = "and there is none before it: no configuration is in force yet"
	}
	defer func() {
		if err != nil {
			err = errors.Join(advise(err), back.restore())
		}
	}()
	for _, f := range files {
		if f.Support {
			if err := back.put(f); err != nil {
				return err
			}
		}
	}
	if err := c.checkCandidates(ctx, files, before); err != nil {
		return err
	}
	for _, f := range files {
		if !f.Support {
			if err := back.put(f); err != nil {
				return err
			}
		}
	}
	if c.Check != "" && !strings.Contains(c.Check, Candidate) {
		if err := c.run(ctx, c.Check); err != nil {
			for _, f := range files {
				if !f.Support {
					_ = writeFile(f.Path+suffixRefused, f.Text) // it is only for people
				}
			}
			return fmt.Errorf("the new configuration is refused, %s; see the files with %s: %w", before, suffixRefused, err)
		}
	}
	back.checked = true
	reload := c.reload
	if reload == nil && c.Reload != "" {
		reload = func(ctx context.Context) error { return c.run(ctx, c.Reload) }
	}
	if reload != nil {
		if err := reload(ctx); err != nil {
			return fmt.Errorf("the reload failed with the new configuration, %s: %w", before, err)
		}
	}
	for _, f := range files {
		os.Remove(f.Path + suffixRefused)
	}
	return nil
}

// anyThere reports whether a balancer has any of these files already, whoever
// wrote them.
func anyThere(files []File) bool {
	return slices.ContainsFunc(files, func(f File) bool {
		_, err := os.Stat(f.Path)
		return !f.Support && err == nil
	})
}

// checkCandidates checks each file under another name.
func (c Commands) checkCandidates(ctx context.Context, files []File, before string) error {
	if !strings.Contains(c.Check, Candidate) {
		return nil
	}
	for _, f := range files {
		if f.Support {
			continue
		}
		name := f.Path + suffixNew
		if err := writeFile(name, f.Text); err != nil {
			return err
		}
		if err := c.run(ctx, strings.ReplaceAll(c.Check, Candidate, shellQuote(name))); err != nil {
			if renamed := os.Rename(name, f.Path+suffixRefused); renamed != nil {
				return errors.Join(err, renamed)
			}
			return fmt.Errorf("the new configuration is refused, %s; see %s: %w", before, f.Path+suffixRefused, err)
		}
		os.Remove(name)
	}
	return nil
}

// run runs a command of the operator's, and ends it with all its children when
// its time is over.
func (c Commands) run(ctx context.Context, command string) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("it took longer than %v", c.Timeout)
	}
	return fmt.Errorf("%s: %w%s", command, err, said(out))
}

// said is the end of a program's output, in one line.
func said(out []byte) string {
	const most = 600
	text := strings.Join(strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	if text == "" {
		return ""
	}
	return ": " + text
}

// shellQuote makes one word of a path.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// undo knows how files were.
type undo struct {
	files []File // with nil Text: there was none
	// checked: a file that took nobody's place is good, and stays.
	checked bool
}

// put gives a file its name, unless it is there with this text.
func (u *undo) put(f File) error {
	old, err := os.ReadFile(f.Path)
	switch {
	case err == nil && bytes.Equal(old, f.Text):
		return nil
	case err == nil && old == nil:
		old = []byte{}
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return err
	}
	u.files = append(u.files, File{Path: f.Path, Text: old})
	return writeFile(f.Path, f.Text)
}

// restore gives the files their old text.
func (u *undo) restore() error {
	var problems []error
	for _, f := range u.files {
		switch {
		case f.Text != nil:
			problems = append(problems, writeFile(f.Path, f.Text))
		case !u.checked:
			if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				problems = append(problems, err)
			}
		}
	}
	return errors.Join(problems...)
}

// writeFile writes a file so that after a power cut there is the old text or the
// new one under its name. Nothing in these files is secret.
func writeFile(path string, text []byte) (err error) {
	name := path + suffixNew
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("cannot write: %w: let this user write into %s, or name another place", err, filepath.Dir(path))
	}
	defer func() {
		if err != nil {
			os.Remove(name)
		}
	}()
	_, err = file.Write(text)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(name, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

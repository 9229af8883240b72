package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newManCommand() *cobra.Command {
	var dir, date string
	cmd := &cobra.Command{
		Use:    "man --dir DIRECTORY",
		Short:  "Write a manual page for every command",
		Long:   "Writes a manual page for every command, from what its --help says, for the packages.",
		Hidden: true, // it is for those who build packages
		Args:   noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usageError{errors.New("give --dir DIRECTORY")}
			}
			day, err := time.Parse(time.DateOnly, date)
			if err != nil {
				return usageError{fmt.Errorf("--date is %q: write it like 2026-01-31", date)}
			}
			return writeManPages(cmd.Root(), dir, day)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIRECTORY` to write to")
	cmd.Flags().StringVar(&date, "date", time.Now().UTC().Format(time.DateOnly), "`DATE` of the pages")
	return cmd
}

// writeManPages writes the page of a command and of those below it.
func writeManPages(cmd *cobra.Command, dir string, date time.Time) error {
	if cmd.Hidden || cmd.IsAdditionalHelpTopicCommand() {
		return nil
	}
	err := os.WriteFile(filepath.Join(dir, manName(cmd)+".1"), []byte(manPage(cmd, date)), 0o644)
	if cmd.Name() == "completion" {
		return err // the packages bring what its commands print
	}
	for _, c := range cmd.Commands() {
		if err == nil && c.Name() != "help" {
			err = writeManPages(c, dir, date)
		}
	}
	return err
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// page is a manual page in the language of man(7).
type page struct{ strings.Builder }

func manPage(cmd *cobra.Command, date time.Time) string {
	var p page
	cmd.InitDefaultHelpFlag()
	p.line(`.TH "%s" 1 "%s" "chainmail %s" "chainmail"`, roff(strings.ToUpper(manName(cmd))), date.Format(time.DateOnly), roff(version))
	p.line(".nh\n.ad l") // what stands here is typed: no word is cut or stretched
	p.section("NAME")
	p.line(`%s \- %s`, roff(manName(cmd)), roff(lowerFirst(strings.TrimSuffix(cmd.Short, "."))))
	p.section("SYNOPSIS")
	p.synopsis(cmd)
	p.section("DESCRIPTION")
	if cmd.Long != "" {
		p.text(cmd.Long)
	} else {
		p.text(sentence(cmd.Short))
	}
	p.commands(cmd)
	p.options(cmd.NonInheritedFlags())
	if cmd.Example != "" {
		p.section("EXAMPLES")
		p.verbatim(strings.Split(strings.TrimRight(cmd.Example, "\n"), "\n"))
	}
	p.surroundings(cmd)
	return p.String()
}

func (p *page) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

func (p *page) section(name string) { p.line(`.SH "%s"`, roff(name)) }

// synopsis prints the command in bold and what the operator chooses in italics.
func (p *page) synopsis(cmd *cobra.Command) {
	rest := strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath())
	if cmd.HasAvailableSubCommands() {
		rest = " COMMAND" + strings.ReplaceAll(rest, " [flags]", "") + " [flags]"
	}
	words := strings.Fields(rest)
	for i, word := range words {
		bare := strings.Trim(word, "[]{}.|")
		if bare != "" && bare == strings.ToUpper(bare) {
			words[i] = `\fI` + roff(word) + `\fR`
		} else if strings.HasPrefix(bare, "--") {
			words[i] = strings.Replace(roff(word), roff(bare), `\fB`+roff(bare)+`\fR`, 1)
		} else {
			words[i] = roff(word)
		}
	}
	p.line(`\fB%s\fR %s`, roff(cmd.CommandPath()), strings.Join(words, " "))
}

// text prints paragraphs, and as they are those whose lines are indented.
func (p *page) text(text string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		lines := strings.Split(strings.Trim(paragraph, "\n"), "\n")
		if i > 0 {
			p.line(".PP")
		}
		for len(lines) > 0 {
			n := 1
			for n < len(lines) && indented(lines[n]) == indented(lines[0]) {
				n++
			}
			if indented(lines[0]) {
				p.verbatim(lines[:n])
			} else {
				p.line("%s", roff(strings.Join(lines[:n], "\n")))
			}
			lines = lines[n:]
		}
	}
}

func indented(line string) bool {
	return strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "\t")
}

func (p *page) verbatim(lines []string) {
	p.line(".RS 4\n.nf")
	for _, line := range lines {
		p.line("%s", roff(strings.TrimPrefix(strings.TrimPrefix(line, "\t"), "  ")))
	}
	p.line(".fi\n.RE")
}

// commands lists what is below a command, by its groups.
func (p *page) commands(cmd *cobra.Command) {
	if !cmd.HasAvailableSubCommands() || cmd.Name() == "completion" {
		return
	}
	p.section("COMMANDS")
	list := func(group string) {
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() && c.GroupID == group && c.Name() != "help" {
				p.line(".TP\n\\fB%s\\fR(1)\n%s", roff(manName(c)), roff(sentence(c.Short)))
			}
		}
	}
	for _, group := range cmd.Groups() {
		p.line(`.SS "%s"`, roff(strings.TrimSuffix(group.Title, ":")))
		list(group.ID)
	}
	list("")
}

func (p *page) options(flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	p.section("OPTIONS")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Deprecated != "" {
			return
		}
		name, usage := pflag.UnquoteUsage(f)
		p.line(".TP")
		option := `\fB` + roff("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			option = `\fB` + roff("-"+f.Shorthand) + `\fR, ` + option
		}
		if name != "" {
			option += ` \fI` + roff(name) + `\fR`
		}
		p.line("%s", option)
		if standard := f.DefValue; standard != "" && standard != "false" && standard != "0" && standard != "[]" && standard != "0s" {
			usage += " (default " + standard + ")"
		}
		p.line("%s", roff(sentence(usage)))
	})
}

// surroundings prints what every page ends with.
func (p *page) surroundings(cmd *cobra.Command) {
	if !cmd.HasParent() {
		p.section("FILES")
		p.line(".TP\n\\fI%s\\fR\nThe configuration. All keys, with comments: \\fI/usr/share/doc/chainmail/examples/chainmail.yaml\\fR.", roff(systemConfig))
		p.line(".TP\n\\fI%s\\fR\nThe mail, the certificate and keys of the node, and the socket by which commands reach it.", roff(defaultDirectory))
		p.section("SEE ALSO")
		p.line("The documentation in \\fI/usr/share/doc/chainmail\\fR: packages, operations, recipes, security.")
		return
	}
	p.section("EXIT STATUS")
	p.line("0: done. 1: failed, refused, or something was found. 2: the command line or the configuration is wrong. 70: the archive could not write, and the node stopped itself.")
	p.section("SEE ALSO")
	p.line("%s", `\fB`+roff(manName(cmd.Parent()))+`\fR(1)`)
}

// roff writes text so that man(7) shows it as it is: hyphens that can be
// copied, nothing taken for a request, other letters by their number.
func roff(text string) string {
	var b strings.Builder
	for i, line := range strings.Split(text, "\n") {
		if i > 0 {
			b.WriteByte('\n')
		}
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			b.WriteString(`\&`)
		}
		for _, r := range line {
			switch {
			case r == '\\':
				b.WriteString(`\e`)
			case r == '-':
				b.WriteString(`\-`)
			case r == '"':
				b.WriteString(`\(dq`)
			case r == '\'':
				b.WriteString(`\(aq`)
			case r == '`':
				b.WriteString(`\(ga`)
			case r == '^':
				b.WriteString(`\(ha`)
			case r == '~':
				b.WriteString(`\(ti`)
			case r > 126:
				fmt.Fprintf(&b, `\[u%04X]`, r)
			default:
				b.WriteRune(r)
			}
		}
	}
	return b.String()
}

func lowerFirst(s string) string {
	first, _, _ := strings.Cut(s, " ")
	if first == strings.ToUpper(first) && len(first) > 1 {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// sentence ends a phrase of the help as one.
func sentence(s string) string {
	if s == "" {
		return s
	}
	s = strings.ToUpper(s[:1]) + s[1:]
	if strings.HasSuffix(s, ".") || strings.HasSuffix(s, "?") {
		return s
	}
	return s + "."
}

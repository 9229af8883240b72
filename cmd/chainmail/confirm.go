package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// confirm asks a person to type a word, and fails when something else comes.
func confirm(in io.Reader, out io.Writer, question, word string) error {
	fmt.Fprintf(out, "%s\nType %s to go on: ", sanitizeLines(question), sanitize(word))
	line, err := bufio.NewReader(in).ReadString('\n')
	if strings.TrimSpace(line) == word {
		return nil
	}
	if err != nil {
		fmt.Fprintln(out)
	}
	return fmt.Errorf("nothing was changed: %s was not typed", word)
}

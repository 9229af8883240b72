// Package support holds what tests of whole nodes share: starting one in this
// process or as the real program, and talking SMTP to it byte by byte.
package support

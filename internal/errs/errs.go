// Package errs holds the one error type that crosses banger's packages: a kind that
// the API maps to a status once, and sentences written for a person.
//
// A message says what failed; a cause says why; a hint says what to do next. Packages
// below the API build these; nothing outside internal/server turns them into HTTP.
package errs

import (
	"errors"
	"fmt"
)

// Kind classifies an error by what the caller can do about it.
type Kind string

const (
	NotFound    Kind = "not_found"   // the named thing does not exist
	Conflict    Kind = "conflict"    // it exists already, or is in a state that forbids this
	Invalid     Kind = "invalid"     // the request can never work as written
	Busy        Kind = "busy"        // someone else holds it now; try again
	Unavailable Kind = "unavailable" // the host lacks something this needs
	Internal    Kind = "internal"    // a fault of banger's or of the host
)

// Error is an error for a person.
type Error struct {
	Kind    Kind
	Message string // what failed, as a sentence fragment without a final period
	Hint    string // what to do next, or empty
	Err     error  // why, or nil
}

// New makes an Error whose message is formatted as fmt.Sprintf does. It wraps no
// cause: give that with [Error.Because].
func New(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// Because returns e with the cause err.
func (e *Error) Because(err error) *Error {
	e.Err = err
	return e
}

// Try returns e with a hint: what the person can do next.
func (e *Error) Try(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Error gives what failed and why. The hint is left to whoever prints it.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first Error in err's tree, and Internal for any
// other error.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// HintOf returns the first hint found in err's tree, or "".
func HintOf(err error) string {
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

package server

import (
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/errs"
)

// statusOf is the one place where an error's kind becomes a status.
var statusOf = map[errs.Kind]int{
	errs.NotFound:    http.StatusNotFound,
	errs.Conflict:    http.StatusConflict,
	errs.Invalid:     http.StatusBadRequest,
	errs.Busy:        http.StatusLocked,
	errs.Unavailable: http.StatusServiceUnavailable,
	errs.Internal:    http.StatusInternalServerError,
}

// failure is an api.Error that huma can send: its fields are the body of the answer.
type failure struct {
	*wireError
	status int
}

// wireError is api.Error under a name that does not hide its method.
type wireError = api.Error

func (f *failure) GetStatus() int { return f.status }

// toAPI makes of any error what a client is to see of it; nil stays nil.
func toAPI(err error) error {
	if err == nil {
		return nil
	}
	return &failure{wire(err), statusOf[errs.KindOf(err)]}
}

// wire makes of any error what a client is to see of it in a body; nil stays nil.
func wire(err error) *api.Error {
	if err == nil {
		return nil
	}
	return &api.Error{Code: string(errs.KindOf(err)), Message: err.Error(), Hint: errs.HintOf(err)}
}

// NewError makes of huma's own complaints (a body that does not fit its schema) the same
// error that the rest of the API returns. The daemon installs it as huma.NewError.
func NewError(status int, message string, details ...error) huma.StatusError {
	for _, d := range details {
		if d == nil {
			continue
		}
		text := d.Error()
		if e, ok := errors.AsType[*huma.ErrorDetail](d); ok {
			text = e.Message + " (" + strings.TrimPrefix(e.Location, "body.") + ")"
		}
		message += ": " + text
	}
	kind := errs.Invalid
	for k, s := range statusOf {
		if s == status {
			kind = k
		}
	}
	return &failure{&api.Error{Code: string(kind), Message: message}, status}
}

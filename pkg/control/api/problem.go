package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

// Codes of problems, for programs.
const (
	CodeInvalid          = "invalid"
	CodeNotFound         = "not_found"
	CodeConflict         = "conflict"
	CodeUnavailable      = "unavailable"
	CodeUnauthorized     = "unauthorized"
	CodeForbidden        = "forbidden"
	CodeMethodNotAllowed = "method_not_allowed"
	CodeTooLarge         = "too_large"
	CodeInternal         = "internal"
)

// Problem is an error of the API.
type Problem struct {
	Status  int    `json:"status"` // HTTP status
	Code    string `json:"code"`
	Message string `json:"message"`
	// Problems are the problems of a configuration text; Message summarizes them.
	Problems []agentconfig.Problem `json:"problems,omitempty"`
}

// Error returns the message, followed by one line for each problem of a text.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Message)
	for _, detail := range p.Problems {
		b.WriteString("\n" + detail.String())
	}
	return b.String()
}

// NotFound reports that something does not exist.
func NotFound(format string, args ...any) *Problem {
	return &Problem{Status: http.StatusNotFound, Code: CodeNotFound, Message: fmt.Sprintf(format, args...)}
}

// Conflict reports that something already exists, or that the current state does not
// allow a change.
func Conflict(format string, args ...any) *Problem {
	return &Problem{Status: http.StatusConflict, Code: CodeConflict, Message: fmt.Sprintf(format, args...)}
}

// Invalid reports a malformed request. It keeps the problems of an *agentconfig.Error.
func Invalid(err error) *Problem {
	p := &Problem{Status: http.StatusBadRequest, Code: CodeInvalid, Message: err.Error()}
	var wrong *agentconfig.Error
	if errors.As(err, &wrong) {
		p.Message, p.Problems = "invalid configuration, nothing was changed", wrong.Problems
	}
	return p
}

// Unavailable reports a failure that may succeed later.
func Unavailable(format string, args ...any) *Problem {
	return &Problem{Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Message: fmt.Sprintf(format, args...)}
}

package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

// Codes of problems that programs may tell apart.
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
	Status  int    `json:"status"` // of HTTP
	Code    string `json:"code"`
	Message string `json:"message"`
	// Problems are what is wrong with a text; Message is what they have in common.
	Problems []agentconfig.Problem `json:"problems,omitempty"`
}

// Error is the message, and a line for each problem of a text.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Message)
	for _, detail := range p.Problems {
		b.WriteString("\n" + detail.String())
	}
	return b.String()
}

// NotFound is about something that does not exist.
func NotFound(format string, args ...any) *Problem {
	return &Problem{Status: http.StatusNotFound, Code: CodeNotFound, Message: fmt.Sprintf(format, args...)}
}

// Conflict is about something that exists already, or that may not be done as things are.
func Conflict(format string, args ...any) *Problem {
	return &Problem{Status: http.StatusConflict, Code: CodeConflict, Message: fmt.Sprintf(format, args...)}
}

// Invalid is about what was sent. The problems of an *agentconfig.Error are kept.
func Invalid(err error) *Problem {
	p := &Problem{Status: http.StatusBadRequest, Code: CodeInvalid, Message: err.Error()}
	var wrong *agentconfig.Error
	if errors.As(err, &wrong) {
		p.Message, p.Problems = "the configuration is wrong, nothing was changed", wrong.Problems
	}
	return p
}

// Unavailable is about something that may work a little later.
func Unavailable(format string, args ...any) *Problem {
	return &Problem{Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Message: fmt.Sprintf(format, args...)}
}

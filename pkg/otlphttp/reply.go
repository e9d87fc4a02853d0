package otlphttp

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// maxMessageBytes bounds the message of a response, whatever it quotes.
const maxMessageBytes = 1 << 10

// reason is why a request did not reach the consumer. It is empty if it did.
type reason string

const (
	badPath   reason = "path"
	badMethod reason = "method"
	badOrigin reason = "origin"
	untrusted reason = "client_certificate"
	// unauthorized is a missing or wrong bearer token.
	unauthorized reason = "bearer_token"
	badType      reason = "content_type"
	badEncoding  reason = "content_encoding"
	tooLarge     reason = "too_large"
	tooSlow      reason = "too_slow"
	brokenOff    reason = "broken_off"
	malformed    reason = "malformed"
	stopping     reason = "stopping"
)

var reasons = func() []reason {
	all := []reason{badPath, badMethod, badOrigin, untrusted, unauthorized, badType, badEncoding, tooLarge, tooSlow, brokenOff, malformed, stopping}
	for _, why := range inflight.Refusals {
		all = append(all, reason(why))
	}
	return all
}()

// reply is a response: a Result with status 200, an empty body with 204, otherwise a
// google.rpc.Status.
type reply struct {
	status     int
	reason     reason
	result     signal.Result
	code       code.Code
	message    string
	retryAfter time.Duration // for 503 and 429
	allow      string        // for 405
}

func (s *Server) refuse(httpStatus int, c code.Code, why reason, format string, args ...any) *reply {
	return &reply{status: httpStatus, code: c, reason: why, message: fmt.Sprintf(format, args...)}
}

func (s *Server) refuseMethod(method string) *reply {
	r := s.refuse(http.StatusMethodNotAllowed, code.Code_UNIMPLEMENTED, badMethod, "method %s is not supported, send POST", method)
	r.allow = http.MethodPost
	if s.cfg.CORS.Enabled() {
		r.allow += ", " + http.MethodOptions
	}
	return r
}

func (s *Server) refuseTooLarge(what string) *reply {
	return s.refuse(http.StatusRequestEntityTooLarge, code.Code_RESOURCE_EXHAUSTED, tooLarge,
		"%s: the limit is %d bytes, send smaller batches", what, s.cfg.MaxRequestBytes)
}

func (s *Server) refuseBusy(why inflight.Refusal) *reply {
	return &reply{
		status: http.StatusServiceUnavailable, code: code.Code_UNAVAILABLE, reason: reason(why),
		message:    "receiver is at its limit of " + strings.ReplaceAll(string(why), "_", " "),
		retryAfter: s.cfg.RetryDelay,
	}
}

// failed converts a consumer's error to a reply.
func (s *Server) failed(err error) *reply {
	r := &reply{message: err.Error()}
	var quota interface{ ExhaustedFor() time.Duration }
	if errors.As(err, &quota) {
		r.status, r.code, r.retryAfter = http.StatusTooManyRequests, code.Code_RESOURCE_EXHAUSTED, max(quota.ExhaustedFor(), s.cfg.RetryDelay)
		return r
	}
	switch fault.ClassOf(err) {
	case fault.Rejected:
		r.status, r.code = http.StatusBadRequest, code.Code_INVALID_ARGUMENT
	case fault.Retryable, fault.Overload, fault.Fenced:
		r.status, r.code, r.retryAfter = http.StatusServiceUnavailable, code.Code_UNAVAILABLE, s.cfg.RetryDelay
		var hint interface{ RetryAfter() time.Duration }
		if errors.As(err, &hint) && hint.RetryAfter() > 0 {
			r.retryAfter = hint.RetryAfter()
		}
	default:
		r.status, r.code = http.StatusInternalServerError, code.Code_INTERNAL
	}
	return r
}

// write sends the response. It ignores errors, which mean that the client has
// disconnected.
func (r *reply) write(w http.ResponseWriter, f form) {
	if r.status == http.StatusNoContent {
		w.WriteHeader(r.status)
		return
	}
	body, err := r.body(f)
	if err != nil {
		body = nil
	}
	h := w.Header()
	h["Content-Type"] = f.header
	h.Set("Content-Length", strconv.Itoa(len(body)))
	switch r.status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", strconv.FormatInt(seconds(jitter(r.retryAfter)), 10))
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusMethodNotAllowed:
		h.Set("Allow", r.allow)
	case http.StatusUnsupportedMediaType:
		h.Set("Accept-Post", acceptedTypes)
		h.Set("Accept-Encoding", acceptedEncodings)
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(body)
}

func (r *reply) body(f form) ([]byte, error) {
	message := text(r.message)
	switch {
	case r.status != http.StatusOK && f.json:
		return json.Marshal(map[string]any{"code": int32(r.code), "message": message})
	case r.status != http.StatusOK:
		return proto.Marshal(&status.Status{Code: int32(r.code), Message: message})
	case f.json && r.result == (signal.Result{}):
		return []byte("{}"), nil
	case f.json:
		partial := map[string]string{}
		if r.result.Rejected != 0 {
			partial["rejectedSpans"] = strconv.FormatInt(r.result.Rejected, 10) // OTLP/JSON encodes 64-bit integers as strings
		}
		if r.result.Message != "" {
			partial["errorMessage"] = text(r.result.Message)
		}
		return json.Marshal(map[string]any{"partialSuccess": partial})
	case r.result == (signal.Result{}):
		return nil, nil // an empty message encodes to no bytes
	default:
		return proto.Marshal(&coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{
			RejectedSpans: r.result.Rejected, ErrorMessage: text(r.result.Message),
		}})
	}
}

// text makes a message valid UTF-8 and short.
func text(s string) string {
	if len(s) > maxMessageBytes {
		s = s[:maxMessageBytes] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// jitter returns a random duration between half and one and a half of d, to spread
// clients that were refused together.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d+1) //nolint:gosec // spreads load, not security relevant
}

// seconds rounds d up: Retry-After has no fractions, and 0 would mean at once.
func seconds(d time.Duration) int64 {
	return max(1, int64((d+time.Second-1)/time.Second))
}

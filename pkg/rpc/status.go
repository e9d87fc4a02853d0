package rpc

import (
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/schema"
)

// maxStatusText keeps a status, which travels in HTTP/2 headers, under the header
// limits of proxies and clients (8 KiB is the smallest in common use).
const maxStatusText = 1 << 10

// statusOf maps a consumer's error to the answer.
func (s *Server) statusOf(err error) error {
	var quota interface{ ExhaustedFor() time.Duration }
	if errors.As(err, &quota) {
		return s.exhausted(err.Error(), quota.ExhaustedFor())
	}
	var untouched interface{ NothingStored() bool }
	if errors.As(err, &untouched) && untouched.NothingStored() {
		return s.unavailable(err.Error(), nothingStored)
	}
	switch fault.ClassOf(err) {
	case fault.Rejected:
		return status.Error(codes.InvalidArgument, statusText(err.Error()))
	case fault.Retryable, fault.Overload, fault.Fenced:
		return s.unavailable(err.Error())
	default:
		return status.Error(codes.Internal, statusText(err.Error()))
	}
}

// exhausted asks a client that has used up its quota to send the same again, later. Nothing
// of the request was stored.
func (s *Server) exhausted(text string, after time.Duration) error {
	return retryable(codes.ResourceExhausted, text, max(after, s.cfg.RetryDelay), nothingStored)
}

// unavailable asks the client to send the same again, later.
func (s *Server) unavailable(text string, more ...protoadapt.MessageV1) error {
	return retryable(codes.Unavailable, text, s.cfg.RetryDelay, more...)
}

func retryable(code codes.Code, text string, after time.Duration, more ...protoadapt.MessageV1) error {
	st := status.New(code, statusText(text))
	details := append(more, &errdetails.RetryInfo{RetryDelay: durationpb.New(jitter(after))})
	detailed, err := st.WithDetails(details...)
	if err != nil {
		return st.Err()
	}
	return detailed.Err()
}

// refused says beside that nothing of the request was stored, so that an agent
// need not send it as one that may have been.
func (s *service) refused(why inflight.Refusal) error {
	s.metrics.refused.WithLabelValues(string(why)).Inc()
	return s.atLimit(why)
}

// refusedOther is refused for services that take no spans or flows.
func (s *Server) refusedOther(why inflight.Refusal) error {
	s.refusedCalls.WithLabelValues(string(why)).Inc()
	return s.atLimit(why)
}

func (s *Server) atLimit(why inflight.Refusal) error {
	return s.unavailable("server is at its limit of "+strings.ReplaceAll(string(why), "_", " "), nothingStored)
}

// nothingStored tells an agent that it need not send the request as one that may have been stored.
var nothingStored = &errdetails.ErrorInfo{Domain: schema.ErrorDomain, Reason: schema.ReasonAtLimit}

// jitter spreads clients that were refused together between half of d and one
// and a half.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d+1) //nolint:gosec // spreads load, guards nothing
}

// statusText makes text fit for a status: valid UTF-8, as protobuf strings must
// be, and short.
func statusText(text string) string {
	if len(text) > maxStatusText {
		text = text[:maxStatusText] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}

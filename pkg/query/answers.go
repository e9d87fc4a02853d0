package query

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/semaphore"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// Answers bounds the memory that answers take, however slowly clients read: at most
// query.max_queries are made at a time, and what is made and not yet read takes at most
// four results of query.max_result_bytes. Beyond that, clients are asked to come again.
type Answers struct {
	making *semaphore.Weighted
	unread *semaphore.Weighted
	most   int64
	gaveUp prometheus.Counter
}

// NewAnswers returns bounds that all handlers and services of a server share.
// reg may be nil.
func NewAnswers(cfg Config, reg prometheus.Registerer) *Answers {
	most := 4 * cfg.MaxResultBytes
	gaveUp := promauto.With(reg).NewCounter(prometheus.CounterOpts{
		Namespace: "metaflow", Subsystem: "query", Name: "unread_connections_total", Help: "Connections of the gRPC port closed because the client did not read an answer.",
	})
	return &Answers{semaphore.NewWeighted(int64(cfg.MaxQueries)), semaphore.NewWeighted(most), most, gaveUp}
}

// ReadTime is how long a client may take to read an answer over HTTP, or to take a message of
// one over gRPC.
const ReadTime = time.Minute

// Bound applies the bounds to a handler that writes each answer at once.
func (a *Answers) Bound(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := a.making.Acquire(r.Context(), 1); err != nil {
			return // the client has left
		}
		answer := &answer{ResponseWriter: w, of: a, making: true}
		defer answer.close()
		next.ServeHTTP(answer, r)
	})
}

// BoundUnread applies the bounds to a handler that calls Make itself.
func (a *Answers) BoundUnread(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &answer{ResponseWriter: w, of: a}
		defer answer.close()
		next.ServeHTTP(answer, r)
	})
}

// Make waits until an answer may be made, and fails only with ctx. The caller calls made when
// it is, once or more often.
func (a *Answers) Make(ctx context.Context) (made func(), err error) {
	if err := a.making.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { a.making.Release(1) }), nil
}

// Hold counts an answer as unread until release is called. An error is of the class
// fault.Rejected: too many are unread.
func (a *Answers) Hold(bytes int) (release func(), err error) {
	n := min(int64(bytes), a.most)
	if !a.unread.TryAcquire(n) {
		return nil, errRefused
	}
	return func() { a.unread.Release(n) }, nil
}

// GaveUp counts a connection that was closed because its client did not read an answer.
func (a *Answers) GaveUp() { a.gaveUp.Inc() }

// answer is an answer that is being made until its first byte is written.
type answer struct {
	http.ResponseWriter
	of      *Answers
	making  bool
	written bool
	held    int64 // of unread
	refused bool
}

var errRefused = fault.As(fault.Rejected, errors.New("too many answers are unread: try again (query.max_result_bytes)"))

// Write waits until the client has taken body, as far as buffers do not hold it.
func (a *answer) Write(body []byte) (int, error) {
	if a.refused {
		return 0, errRefused
	}
	n := min(int64(len(body)), a.of.most-a.held)
	if !a.of.unread.TryAcquire(n) {
		a.refused = true
		if !a.written {
			a.begin()
			a.Header().Del("Content-Length")
			a.Header().Set("Retry-After", "5")
			http.Error(a.ResponseWriter, errRefused.Error(), http.StatusServiceUnavailable)
		}
		return 0, errRefused
	}
	a.held += n
	if !a.written {
		a.begin()
		_ = http.NewResponseController(a.ResponseWriter).SetWriteDeadline(time.Now().Add(ReadTime)) // tests use a writer without deadlines
	}
	return a.ResponseWriter.Write(body)
}

// begin is called before the first byte.
func (a *answer) begin() {
	a.written = true
	if a.making {
		a.making = false
		a.of.making.Release(1)
	}
}

// Unwrap implements what http.ResponseController looks for.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) close() {
	a.begin()
	a.of.unread.Release(a.held)
}

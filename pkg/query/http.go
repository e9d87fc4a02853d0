package query

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

// Guard asks for one of the tokens. A nil set asks for none.
func Guard(known *tokens.Set, next http.Handler) http.Handler {
	if known == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if known.Match(tokens.Bearer(r.Header.Get("Authorization"))).Known() {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "a token of "+TokensKey+" is required: Authorization: Bearer TOKEN", http.StatusUnauthorized)
	})
}

// HTTPError answers with an error of a Reader: 400 if the question is to blame, 404 for a
// trace that is not stored, 422 if ClickHouse refused the query, for its limits for
// example, otherwise 503.
func HTTPError(w http.ResponseWriter, err error) {
	code := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, context.Canceled):
		return // the client has left
	case errors.Is(err, ErrBadRequest):
		code = http.StatusBadRequest
	case errors.Is(err, ErrNotFound):
		code = http.StatusNotFound
	case fault.ClassOf(err) == fault.Rejected:
		code = http.StatusUnprocessableEntity
	}
	http.Error(w, err.Error(), code)
}

// HTTPJSON answers with JSON text.
func HTTPJSON(w http.ResponseWriter, text []byte) { HTTPBody(w, "application/json", text) }

// HTTPBody answers with a body. Browsers must not guess another type of it.
func HTTPBody(w http.ResponseWriter, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body) // fails only if the client has left
}

package query

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// Clients that do not read hold what they were answered, up to the bound. Another client is
// then asked to come again, and answered once they have read.
func TestAnswersBoundWhatIsUnread(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxResultBytes = 1 << 20
	answers := NewAnswers(cfg, nil)
	read := make(chan struct{})
	var writing sync.WaitGroup
	writing.Add(4)
	body := []byte(strings.Repeat("x", 1<<20))
	h := answers.Bound(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { HTTPBody(w, "text/plain", body) }))
	var ended sync.WaitGroup
	for range 4 {
		ended.Go(func() {
			h.ServeHTTP(&slowReader{ResponseRecorder: httptest.NewRecorder(), writing: &writing, read: read}, httptest.NewRequest(http.MethodGet, "/", nil))
		})
	}
	writing.Wait()
	ask := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w
	}
	if w := ask(); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "too many answers are unread") {
		t.Errorf("beside four answers that nobody reads: %d %.100s", w.Code, w.Body)
	}
	if _, err := answers.Hold(1); err == nil {
		t.Error("another answer is held beside them")
	}
	close(read)
	ended.Wait()
	release, err := answers.Hold(100 << 20) // more than there may ever be
	if err != nil {
		t.Fatal(err)
	}
	release()
	if w := ask(); w.Code != http.StatusOK || w.Body.Len() != len(body) {
		t.Errorf("after they were read: %d with %d bytes", w.Code, w.Body.Len())
	}
}

// A handler that calls Make itself holds its answer only, and shares the bound.
func TestAnswersBoundUnread(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxQueries, cfg.MaxResultBytes = 1, 1<<20
	answers := NewAnswers(cfg, nil)
	made, err := answers.Make(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h := answers.BoundUnread(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { HTTPBody(w, "text/plain", []byte("x")) }))
	ask := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w.Code
	}
	if code := ask(); code != http.StatusOK {
		t.Errorf("while another is made: %d", code)
	}
	release, err := answers.Hold(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if code := ask(); code != http.StatusServiceUnavailable {
		t.Errorf("beside too much that is unread: %d", code)
	}
	release()
	made()
	made() // once more frees nothing else
	if again, err := answers.Make(t.Context()); err != nil || answers.making.TryAcquire(1) {
		t.Errorf("two are made at a time: %v", err)
	} else {
		again()
	}
	if code := ask(); code != http.StatusOK {
		t.Errorf("afterwards: %d", code)
	}
}

// slowReader takes nothing until read is closed.
type slowReader struct {
	*httptest.ResponseRecorder
	writing *sync.WaitGroup
	read    chan struct{}
}

func (s *slowReader) Write(p []byte) (int, error) {
	s.writing.Done()
	<-s.read
	return s.ResponseRecorder.Write(p)
}

// At most query.max_queries answers are made at a time, and a client that leaves does not
// wait.
func TestAnswersBoundWhatIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.MaxQueries = 2
		made, goOn := 0, make(chan struct{})
		h := NewAnswers(cfg, nil).Bound(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			made++
			<-goOn
			_, _ = io.WriteString(w, "made")
		}))
		ctx, leave := context.WithCancel(t.Context())
		for range 3 {
			go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
			synctest.Wait()
		}
		go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil))
		synctest.Wait()
		if made != 2 {
			t.Errorf("%d answers are made at a time, want 2", made)
		}
		leave()
		goOn <- struct{}{}
		synctest.Wait()
		if made != 3 {
			t.Errorf("%d answers after one of two was made and a client left, want 3", made)
		}
		close(goOn)
		synctest.Wait()
		if made != 3 {
			t.Errorf("%d answers, want 3", made)
		}
	})
}

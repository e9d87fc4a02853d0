package rpc_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// holder counts what clients have not taken.
type holder struct {
	mu       sync.Mutex
	held     int
	most     int // 0 is any number
	handlers int // that run
	gaveUp   int
}

func (h *holder) GaveUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gaveUp++
}

// wantGivenUp checks how many connections were closed because of unread answers.
func (h *holder) wantGivenUp(t *testing.T, want int) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gaveUp != want {
		t.Errorf("%d connections were given up, want %d", h.gaveUp, want)
	}
}

func (h *holder) Hold(bytes int) (func(), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.most > 0 && h.held+bytes > h.most {
		return nil, errors.New("too much is unread")
	}
	h.held += bytes
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.held -= bytes
	}), nil
}

func (h *holder) count(handlers int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handlers += handlers
}

// until waits for a state of the holder.
func (h *holder) until(t *testing.T, what string, is func(held, handlers int) bool) {
	t.Helper()
	if err := wait.Poll(time.Minute, nil, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !is(h.held, h.handlers) {
			return fmt.Errorf("%d bytes are held, %d handlers run", h.held, h.handlers)
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

const (
	answerBytes  = 300 << 10
	answersOne   = "/test.Answers/One"  // one message
	answersMany  = "/test.Answers/Many" // twenty
	answersCount = 20
)

func (h *holder) register(r grpc.ServiceRegistrar) {
	body := wrapperspb.Bytes(make([]byte, answerBytes))
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Answers", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "One", Handler: func(_ any, _ context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return body, receive(&emptypb.Empty{})
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Many", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			h.count(1)
			defer h.count(-1)
			if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
				return err
			}
			for range answersCount {
				if err := stream.SendMsg(body); err != nil {
					return err
				}
			}
			return nil
		}}},
	}, h)
}

func startHolding(t *testing.T, h *holder, readTime time.Duration) *running {
	t.Helper()
	return start(t, testConfig(), nil, rpc.Options{Services: []func(grpc.ServiceRegistrar){h.register}, Answers: h, ReadTime: readTime})
}

// ask makes a call with an empty message, of which the client has sent all.
func (a *attacker) ask(method string, more ...string) {
	stream := a.call(method, more...)
	a.write(frame(0x0, 0x1, stream, make([]byte, 5)))
}

// A client that takes nothing of what it asked for loses its connection in time, and what waited
// for it is given up: the messages of calls that have ended, and the handlers of streams.
func TestUnreadAnswersAreDropped(t *testing.T) {
	const readTime = 4 * time.Second // the answers must wait before it has passed, also on a busy machine
	t.Run("the window is closed", func(t *testing.T) {
		t.Parallel()
		h := &holder{}
		srv := startHolding(t, h, readTime)
		a := attack(t, "127.0.0.9", srv.Addr())
		for range 3 {
			a.ask(answersOne)
			a.ask(answersMany)
		}
		h.until(t, "six answers wait", func(held, handlers int) bool { return held > 6*answerBytes && handlers == 3 })
		_ = a.hungUp()
		h.until(t, "the client is gone", func(held, handlers int) bool { return held == 0 && handlers == 0 })
		h.wantGivenUp(t, 1)
	})
	t.Run("a window of zero", func(t *testing.T) {
		t.Parallel()
		h := &holder{}
		srv := startHolding(t, h, readTime)
		a := attack(t, "127.0.0.9", srv.Addr())
		a.write(frame(0x4, 0, 0, []byte{0, 4, 0, 0, 0, 0})) // the initial window
		for range 20 {
			a.ask(answersOne, "grpc-encoding", "gzip", "grpc-accept-encoding", "gzip")
		}
		h.until(t, "the answers wait, uncompressed", func(held, _ int) bool { return held > 20*answerBytes })
		_ = a.hungUp()
		h.until(t, "the client is gone", func(held, _ int) bool { return held == 0 })
		h.wantGivenUp(t, 1)
	})
	t.Run("nothing is read from the socket", func(t *testing.T) {
		t.Parallel()
		h := &holder{}
		srv := startHolding(t, h, readTime)
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", srv.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		a := &attacker{Conn: c, next: 1, windows: map[uint32]int{}}
		a.write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
		a.write(frame(0x4, 0, 0, []byte{0, 4, 0x7f, 0xff, 0xff, 0xff}))
		a.write(frame(0x8, 0, 0, binary.BigEndian.AppendUint32(nil, 1<<30)))
		for range 10 {
			a.ask(answersMany)
		}
		h.until(t, "the socket is full", func(held, handlers int) bool { return held > answerBytes && handlers > 0 })
		h.until(t, "the client is gone", func(held, handlers int) bool { return held == 0 && handlers == 0 })
		h.wantGivenUp(t, 1)
	})
}

// A client that takes one message after another may take its time, and what it has taken is not
// held.
func TestAnswersMayBeReadSlowly(t *testing.T) {
	h := &holder{}
	const patience = 10 * time.Second
	srv := startHolding(t, h, patience)
	conn := dial(t, srv.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, answersMany)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		var m wrapperspb.BytesValue
		err := stream.RecvMsg(&m)
		if errors.Is(err, io.EOF) && n == answersCount {
			break
		}
		if err != nil || len(m.Value) != answerBytes {
			t.Fatalf("message %d: %d bytes, %v", n, len(m.Value), err)
		}
		<-time.After(patience / (answersCount - 5)) // all of them take longer than one may
	}
	h.until(t, "all is read", func(held, handlers int) bool { return held == 0 && handlers == 0 })
}

// Clients that leave at any moment leave nothing behind, and keep their connection.
func TestAnswersOfClientsThatLeave(t *testing.T) {
	h := &holder{}
	srv := startHolding(t, h, time.Hour)
	conn := dial(t, srv.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	var asking sync.WaitGroup
	for i := range 200 {
		asking.Go(func() {
			ctx, leave := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
			defer leave()
			if i%2 == 0 {
				_ = conn.Invoke(ctx, answersOne, &emptypb.Empty{}, &wrapperspb.BytesValue{})
				return
			}
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, answersMany)
			if err == nil && stream.SendMsg(&emptypb.Empty{}) == nil {
				_ = stream.CloseSend()
				_ = stream.RecvMsg(&wrapperspb.BytesValue{})
			}
		})
	}
	asking.Wait()
	h.until(t, "all have left", func(held, handlers int) bool { return held == 0 && handlers == 0 })
	var m wrapperspb.BytesValue
	if err := conn.Invoke(t.Context(), answersOne, &emptypb.Empty{}, &m); err != nil || len(m.Value) != answerBytes {
		t.Errorf("%d bytes, %v", len(m.Value), err)
	}
}

// What does not fit beside other unread answers is refused with the reason.
func TestUnreadAnswersAreBounded(t *testing.T) {
	h := &holder{most: 2 * answerBytes}
	srv := startHolding(t, h, time.Hour)
	a := attack(t, "127.0.0.9", srv.Addr())
	a.ask(answersOne)
	h.until(t, "one waits", func(held, _ int) bool { return held > answerBytes })
	conn := dial(t, srv.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	err := conn.Invoke(t.Context(), answersOne, &emptypb.Empty{}, &wrapperspb.BytesValue{})
	if status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != "too much is unread" {
		t.Errorf("beside an unread answer: %v", err)
	}
	a.Close()
	h.until(t, "the other has left", func(held, _ int) bool { return held == 0 })
	var m wrapperspb.BytesValue
	if err := conn.Invoke(t.Context(), answersOne, &emptypb.Empty{}, &m); err != nil || !proto.Equal(&m, wrapperspb.Bytes(make([]byte, answerBytes))) {
		t.Errorf("after it has left: %v", err)
	}
}

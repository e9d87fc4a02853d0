// Package callerror says what went wrong with a gRPC call, in words for the operator of the client.
//
// gRPC has no types for what goes wrong on a connection, only texts, which name its own parts. A text that
// is not known here stays as it is.
package callerror

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Text returns the words for the error of a call. What a server answers is the name of its code and its
// message. Other errors keep their text.
func Text(err error) string {
	var answer interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &answer) {
		if errors.Is(err, io.EOF) {
			return ended
		}
		return err.Error()
	}
	st := answer.GRPCStatus()
	message := st.Message()
	if cause, ok := ofConnection(message); ok {
		return cause
	}
	switch {
	case st.Code() == codes.Unavailable && strings.HasPrefix(message, "write tcp "):
		return broken(message)
	case strings.Contains(message, "produced zero addresses"):
		return "the name of the server has no address"
	case st.Code() == codes.DeadlineExceeded && (strings.Contains(message, "context deadline exceeded") || strings.Contains(message, "RST_STREAM")):
		return "no answer in time: the server hangs or is overloaded, or another program has the port"
	case st.Code() == codes.Unimplemented && strings.HasPrefix(message, "unknown "):
		return fmt.Sprintf("the server does not take such requests (%s): it has other roles, or it is another program", message)
	case strings.Contains(message, "unexpected HTTP status code") || strings.Contains(message, "unexpected content-type"):
		return fmt.Sprintf("it does not answer in gRPC, so it is another program, or a proxy that does not forward gRPC (%s)", message)
	}
	return fmt.Sprintf("%s: %s", st.Code(), message)
}

// ofConnection returns the words for a message about the connection. It may be in another one, such as that a
// call ended before there was a connection.
func ofConnection(message string) (text string, ok bool) {
	const sign = `connection error: desc = `
	_, quoted, ok := strings.Cut(message, sign)
	if !ok {
		if _, cause, ok := strings.Cut(message, readFailed); ok {
			return broken(cause), true
		}
		return "", false
	}
	quoted, err := strconv.QuotedPrefix(quoted)
	if err != nil {
		return "", false
	}
	desc, err := strconv.Unquote(quoted)
	if err != nil {
		return "", false
	}
	for _, known := range []struct{ sign, text, hint string }{
		{"transport: Error while dialing: ", "cannot connect: ", ""},
		{"transport: authentication handshake failed: ", "TLS handshake: ", ""},
		{"error reading server preface: ", "it does not answer in gRPC: ", "; it is another program, or only one of the two uses TLS"},
	} {
		if cause, ok := strings.CutPrefix(desc, known.sign); ok {
			if strings.HasSuffix(cause, "connection refused") {
				known.hint = ": nothing listens on this address"
			}
			return known.text + cause + known.hint, true
		}
	}
	return broken(strings.TrimPrefix(strings.TrimPrefix(desc, "transport: "), readFailed)), true
}

const readFailed = "error reading from server: "

func broken(cause string) string {
	if strings.HasPrefix(cause, "EOF") {
		return ended
	}
	return "the connection broke: " + cause
}

const ended = "the server ended the connection"

//go:build linux

package main

import (
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
)

// resolver answers questions about the hosts' names, and can be slow, fail or
// be silent for those of one host.
type resolver struct {
	conn *net.UDPConn
	mu   sync.Mutex
	v4   map[string][4]byte
	v6   map[string][16]byte
	// The trouble, for questions from the host at this address.
	of     string
	delay  time.Duration
	code   dnsmessage.RCode
	silent bool
}

// startResolver answers on a host's port 53. Names ending in "6" have only IPv6
// addresses.
func startResolver(at *host, hosts []*host) (*resolver, error) {
	r := &resolver{v4: map[string][4]byte{}, v6: map[string][16]byte{}}
	for _, h := range hosts {
		r.v4[h.name] = h.ip.As4()
		r.v6[h.name+"6"] = h.ip6.As16()
	}
	r.v4["stock-service"] = [4]byte(net.ParseIP(virtual).To4())
	err := namespaces.Enter(at.pid(), func() (err error) {
		r.conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: at.ip.AsSlice(), Port: 53})
		return err
	})
	if err == nil {
		go r.serve()
	}
	return r, err
}

// trouble changes how questions from a host are answered.
func (r *resolver) trouble(of *host, delay time.Duration, code dnsmessage.RCode, silent bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of, r.delay, r.code, r.silent = "", delay, code, silent
	if of != nil {
		r.of = of.ip.String()
	}
	return nil
}

func (r *resolver) serve() {
	buffer := make([]byte, 1500)
	for {
		n, from, err := r.conn.ReadFromUDP(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		var question dnsmessage.Message
		if err := question.Unpack(buffer[:n]); err != nil || len(question.Questions) != 1 {
			continue
		}
		r.mu.Lock()
		delay, code, silent := r.delay, r.code, r.silent
		if r.of != from.IP.String() {
			delay, code, silent = 0, dnsmessage.RCodeSuccess, false
		}
		r.mu.Unlock()
		if silent {
			continue
		}
		answer := r.answer(question, code)
		time.AfterFunc(delay, func() { _, _ = r.conn.WriteToUDP(answer, from) })
	}
}

func (r *resolver) answer(q dnsmessage.Message, code dnsmessage.RCode) []byte {
	question := q.Questions[0]
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true, RCode: code},
		Questions: q.Questions,
	}
	if code == dnsmessage.RCodeSuccess {
		name := strings.TrimSuffix(strings.ToLower(question.Name.String()), ".")
		bare, ours := strings.CutSuffix(name, "."+domain)
		v4, has4 := r.v4[bare]
		v6, has6 := r.v6[bare]
		header := dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: dnsmessage.ClassINET, TTL: 5}
		switch {
		case !ours || !has4 && !has6:
			m.RCode = dnsmessage.RCodeNameError
		case question.Type == dnsmessage.TypeA && has4:
			m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: v4}}}
		case question.Type == dnsmessage.TypeAAAA && has6:
			m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: v6}}}
		}
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}

//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
)

const (
	// longestPacket is more than a tun device passes on.
	longestPacket = 65536
	// heldPackets bounds what the hop holds; it drops what comes on top, as a
	// router does.
	heldPackets = 8192
	// hopTable is the routing table that leads to the hop.
	hopTable = 100
)

// hop is a router in user space that holds packets for some time: the kernels
// of many machines have no qdisc that delays.
//
// The node routes packets between two hosts to a tun device. The hop reads them
// there and writes them back after a delay; then the node forwards them as if
// they had just come.
type hop struct {
	device *os.File
	delay  atomic.Int64 // in nanoseconds
	jitter atomic.Int64 // most that is added to it at random, in nanoseconds
	rules  []string     // arguments of ip rule, in effect
}

type held struct {
	packet []byte
	until  time.Time
}

func newHop() (*hop, error) {
	device, err := openTun("hop")
	if err != nil {
		return nil, err
	}
	h := &hop{device: device}
	err = namespaces.Feed(fmt.Sprintf("link set hop mtu 1500 up\nroute add default dev hop table %d\nrule add iif hop lookup main priority 10\n", hopTable), "ip", "-batch", "-")
	if err != nil {
		return nil, err
	}
	queue := make(chan held, heldPackets)
	go h.read(queue)
	go h.write(queue)
	return h, nil
}

func (h *hop) read(queue chan<- held) {
	defer close(queue)
	buffer := make([]byte, longestPacket)
	for {
		n, err := h.device.Read(buffer)
		if err != nil {
			return
		}
		// The queue keeps the order: a late packet holds up those behind it.
		d := h.delay.Load() + rand.Int64N(h.jitter.Load()+1) //nolint:gosec // a fault needs no secrets
		select {
		case queue <- held{append([]byte(nil), buffer[:n]...), time.Now().Add(time.Duration(d))}:
		default:
		}
	}
}

func (h *hop) write(queue <-chan held) {
	timer := time.NewTimer(0)
	for p := range queue {
		timer.Reset(time.Until(p.until))
		<-timer.C
		_, _ = h.device.Write(p.packet) // what the kernel does not take is lost
	}
}

// hold leads the packets of these ways, from a host to another, through the hop.
func (h *hop) hold(delay, jitter time.Duration, ways ...[2]*host) error {
	h.delay.Store(int64(delay))
	h.jitter.Store(int64(jitter))
	var rules []string
	for _, way := range ways {
		rules = append(rules, fmt.Sprintf("from %s to %s lookup %d priority 20", way[0].ip, way[1].ip, hopTable))
	}
	h.rules = append(h.rules, rules...)
	return namespaces.Feed("rule add "+strings.Join(rules, "\nrule add ")+"\n", "ip", "-batch", "-")
}

func (h *hop) heal() error {
	if len(h.rules) == 0 {
		return nil
	}
	rules := h.rules
	h.rules = nil
	return namespaces.Feed("rule del "+strings.Join(rules, "\nrule del ")+"\n", "ip", "-batch", "-")
}

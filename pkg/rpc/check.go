package rpc

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Bounds for agent messages: several times what a healthy agent needs, and little enough
// to keep for every agent.
const (
	maxMessageBytes   = 64 << 10
	maxIDBytes        = 128
	maxTextBytes      = 256 // a DNS name has up to 253
	maxAddresses      = 64
	maxExceptions     = 32
	maxExceptionBytes = 512
)

func checkSize(m *agentv1.ConnectRequest) error {
	if n := proto.Size(m); n > maxMessageBytes {
		return fmt.Errorf("a message of %d bytes is larger than the %d allowed", n, maxMessageBytes)
	}
	return nil
}

// checkRegistration returns every problem of r, and truncates the addresses of hosts with
// very many.
func checkRegistration(r *agentv1.Registration) error {
	errs := []error{
		checkID("agent_id", r.AgentId),
		checkID("instance_id", r.InstanceId),
	}
	if r.Name == "" {
		errs = append(errs, errors.New("name: it is empty"))
	}
	for _, field := range []struct{ name, value string }{
		{"name", r.Name}, {"host", r.Host}, {"version", r.Version}, {"cluster", r.Cluster}, {"group", r.Group},
	} {
		errs = append(errs, checkText(field.name, field.value))
	}
	r.Addresses = r.Addresses[:min(len(r.Addresses), maxAddresses)]
	for _, a := range r.Addresses {
		if _, err := netip.ParseAddr(a); err != nil || len(a) > maxTextBytes {
			errs = append(errs, fmt.Errorf("addresses: %.64q is not an IP address", a))
		}
	}
	return errors.Join(errs...)
}

// checkID ensures that ids are safe in keys, paths and shells.
func checkID(field, id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%s: it is empty", field)
	case len(id) > maxIDBytes:
		return fmt.Errorf("%s: it is longer than %d bytes", field, maxIDBytes)
	}
	for i, r := range id {
		alphanumeric := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !alphanumeric && (i == 0 || !strings.ContainsRune("-_.:@", r)) {
			return fmt.Errorf("%s: %q has a character that ids cannot have", field, id)
		}
	}
	return nil
}

func checkText(field, text string) error {
	if len(text) > maxTextBytes {
		return fmt.Errorf("%s: it is longer than %d bytes", field, maxTextBytes)
	}
	if strings.ContainsFunc(text, unprintable) {
		return fmt.Errorf("%s: %q has characters that cannot be printed", field, text)
	}
	return nil
}

// unprintable reports whether r could move the cursor of an operator's terminal.
func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// cleanHeartbeat truncates and cleans the texts for people.
func cleanHeartbeat(h *agentv1.Heartbeat) {
	h.Exceptions = h.Exceptions[:min(len(h.Exceptions), maxExceptions)]
	for i, text := range h.Exceptions {
		if len(text) > maxExceptionBytes {
			text = strings.ToValidUTF8(text[:maxExceptionBytes], "") + "..."
		}
		h.Exceptions[i] = strings.Map(func(r rune) rune {
			if unprintable(r) {
				return ' '
			}
			return r
		}, text)
	}
	if len(h.GroupId) > maxIDBytes {
		h.GroupId = "" // no group has such an id
	}
}

package traces_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

const hostAddress = "10.1.2.3"

// withResource is a ResourceSpans of one span.
func withResource(attributes ...*commonpb.KeyValue) *tracepb.ResourceSpans {
	rs := newRequest("", newSpan(1, 1)).GetResourceSpans()[0]
	rs.Resource = &resourcepb.Resource{Attributes: attributes, DroppedAttributesCount: 1}
	return rs
}

func withoutResource() *tracepb.ResourceSpans {
	rs := withResource()
	rs.Resource = nil
	return rs
}

func requestWith(resources ...*tracepb.ResourceSpans) *coltracepb.ExportTraceServiceRequest {
	return &coltracepb.ExportTraceServiceRequest{ResourceSpans: resources}
}

func TestAddHostAddressWhereNothingTellsIt(t *testing.T) {
	address := otlptest.Text("app.host.ip", hostAddress)
	service := otlptest.Text("service.name", "shop")
	alone := withoutResource()
	alone.Resource = &resourcepb.Resource{Attributes: []*commonpb.KeyValue{address}}
	tests := map[string]struct {
		req   *coltracepb.ExportTraceServiceRequest
		want  *coltracepb.ExportTraceServiceRequest // nil: the same
		added int
	}{
		"empty request":     {req: requestWith()},
		"nothing told":      {requestWith(withResource(service)), requestWith(withResource(service, address)), 1},
		"no attributes":     {requestWith(withResource()), requestWith(withResource(address)), 1},
		"no resource":       {requestWith(withoutResource()), requestWith(alone), 1},
		"pod by its uid":    {req: requestWith(withResource(service, otlptest.Text("k8s.pod.uid", "u")))},
		"pod by its ip":     {req: requestWith(withResource(otlptest.Text("k8s.pod.ip", "10.0.0.1"), service))},
		"host, set before":  {req: requestWith(withResource(otlptest.Text("app.host.ip", "10.0.0.1")))},
		"host.ip":           {req: requestWith(withResource(otlptest.Text("host.ip", "10.0.0.1")))},
		"net.host.ip":       {req: requestWith(withResource(otlptest.Text("net.host.ip", "10.0.0.1")))},
		"address as a list": {req: requestWith(withResource(&commonpb.KeyValue{Key: "host.ip", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{}}}}))},
		"similar names": {
			requestWith(withResource(otlptest.Text("k8s.pod.name", "host.ip"), otlptest.Text("host.i", "x"), otlptest.Text("xhost.ip", "x"))),
			requestWith(withResource(otlptest.Text("k8s.pod.name", "host.ip"), otlptest.Text("host.i", "x"), otlptest.Text("xhost.ip", "x"), address)), 1,
		},
		"some of many": {
			requestWith(withResource(otlptest.Text("host.ip", "a")), withResource(service), withResource(otlptest.Text("host.ip", "b")), withoutResource(), withResource(otlptest.Text("host.ip", "c"))),
			requestWith(withResource(otlptest.Text("host.ip", "a")), withResource(service, address), withResource(otlptest.Text("host.ip", "b")), alone, withResource(otlptest.Text("host.ip", "c"))), 2,
		},
		"too short for a span with ids": {req: requestWith(&tracepb.ResourceSpans{}, &tracepb.ResourceSpans{SchemaUrl: "s"})},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			in := marshal(t, tc.req)
			kept := bytes.Clone(in)
			out, added, err := traces.AddHostAddress([]byte("before"), in, hostAddress)
			if err != nil || added != tc.added {
				t.Fatalf("AddHostAddress added %d, %v, want %d", added, err, tc.added)
			}
			if !bytes.Equal(in, kept) {
				t.Error("the request was written to")
			}
			if tc.want == nil {
				if len(in) > 0 && (&out[0] != &in[0] || len(out) != len(in)) {
					t.Error("a request with nothing to change was copied")
				}
				return
			}
			out, found := bytes.CutPrefix(out, []byte("before"))
			if !found {
				t.Fatal("what dst held is gone")
			}
			if diff := cmp.Diff(tc.want, unmarshal(t, out), protocmp.Transform()); diff != "" {
				t.Errorf("the request differs (-want +got):\n%s", diff)
			}
		})
	}
}

// A message field that stands twice is merged by who reads it: what one of
// them tells is told for the resource.
func TestAddHostAddressMergesResources(t *testing.T) {
	spans := protowire.AppendTag(nil, 2, protowire.BytesType)
	spans = protowire.AppendBytes(spans, bytes.Repeat([]byte{0x18, 1}, 20)) // fields that nobody knows
	field := func(kv *commonpb.KeyValue) []byte {
		b, err := proto.Marshal(&tracepb.ResourceSpans{Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{kv}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	service, told := otlptest.Text("service.name", "shop"), otlptest.Text("host.ip", "10.0.0.1")
	for name, tc := range map[string]struct {
		fields []*commonpb.KeyValue
		added  int
	}{
		"told first": {[]*commonpb.KeyValue{told, service}, 0},
		"told last":  {[]*commonpb.KeyValue{service, told}, 0},
		"not told":   {[]*commonpb.KeyValue{service, service}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			rs := append(append(field(tc.fields[0]), spans...), field(tc.fields[1])...)
			in := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), rs)
			out, added, err := traces.AddHostAddress(nil, in, hostAddress)
			if err != nil || added != tc.added {
				t.Fatalf("AddHostAddress added %d, %v, want %d", added, err, tc.added)
			}
			want := tc.fields
			if tc.added > 0 {
				want = append(want, otlptest.Text("app.host.ip", hostAddress))
			}
			got := unmarshal(t, out).GetResourceSpans()[0].GetResource().GetAttributes()
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddHostAddressKeepsWhatItDoesNotKnow(t *testing.T) {
	rs := withResource()
	rs.GetScopeSpans()[0].GetSpans()[0].Kind = 17
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), []byte("of a later version"))
	rs.ProtoReflect().SetUnknown(unknown)
	rs.GetResource().ProtoReflect().SetUnknown(unknown)
	out, added, err := traces.AddHostAddress(nil, marshal(t, requestWith(rs)), hostAddress)
	if err != nil || added != 1 {
		t.Fatalf("added %d, %v", added, err)
	}
	rs.Resource.Attributes = append(rs.Resource.Attributes, otlptest.Text("app.host.ip", hostAddress))
	if diff := cmp.Diff(requestWith(rs), unmarshal(t, out), protocmp.Transform()); diff != "" {
		t.Errorf("the request differs (-want +got):\n%s", diff)
	}
}

func TestAddHostAddressAllocatesOnlyWhatItReturns(t *testing.T) {
	told, untold := marshal(t, requestWith(withResource(otlptest.Text("host.ip", "a")))), marshal(t, requestWith(withResource()))
	buffer := make([]byte, 0, 64<<10)
	for name, req := range map[string][]byte{"nothing to change": told, "into a large buffer": untold} {
		if n := testing.AllocsPerRun(100, func() {
			if _, _, err := traces.AddHostAddress(buffer, req, hostAddress); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzAddHostAddress holds it to Repair and the official protobuf runtime: the same byte
// strings are accepted as by Repair, and what comes out is what the runtime would make of them.
func FuzzAddHostAddress(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(marshal(f, newRequest("shop", newSpan(1, 1), newSpan(2, 2))))
	f.Add(marshal(f, requestWith(withResource(otlptest.Text("host.ip", "a")), withoutResource(), withResource())))
	f.Add([]byte{0x0b, 0x0c})                                           // an empty group
	f.Add([]byte{0x0a, 0x02, 0x0a, 0x00, 0x0a, 0x04, 0x12, 0x02, 1, 1}) // merged messages
	f.Fuzz(func(t *testing.T, in []byte) {
		const address = "fe80:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
		repaired, _, wantErr := traces.Signal.Repair(nil, in)
		out, added, err := traces.AddHostAddress(nil, in, address)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("AddHostAddress = %v, Repair = %v", err, wantErr)
		}
		if err != nil {
			if !errors.Is(err, signal.ErrMalformed) {
				t.Fatalf("AddHostAddress = %v, want ErrMalformed", err)
			}
			return
		}
		in = repaired
		req := unmarshal(t, in)
		if len(out) > 3*len(in) {
			t.Fatalf("%d bytes grew to %d", len(in), len(out))
		}
		got := unmarshal(t, out)
		if len(got.GetResourceSpans()) != len(req.GetResourceSpans()) {
			t.Fatalf("%d resources became %d", len(req.GetResourceSpans()), len(got.GetResourceSpans()))
		}
		sizes := resourceSizes(in)
		for i, rs := range req.GetResourceSpans() {
			if tellsAddress(rs.GetResource()) || sizes[i] < 32 {
				continue
			}
			if rs.Resource == nil {
				rs.Resource = &resourcepb.Resource{}
			}
			rs.Resource.Attributes = append(rs.Resource.Attributes, otlptest.Text("app.host.ip", address))
			added--
		}
		if added != 0 {
			t.Fatalf("%d too many were said to be changed", added)
		}
		if diff := cmp.Diff(req, got, protocmp.Transform()); diff != "" {
			t.Fatalf("the request differs (-want +got):\n%s", diff)
		}
		if again, added, err := traces.AddHostAddress(nil, out, address); err != nil || added != 0 || !bytes.Equal(again, out) {
			t.Fatalf("a second time: added %d, %v", added, err)
		}
	})
}

// resourceSizes returns the size of each ResourceSpans on the wire.
func resourceSizes(req []byte) (sizes []int) {
	for len(req) > 0 {
		num, typ, n := protowire.ConsumeTag(req)
		if num == 1 && typ == protowire.BytesType {
			rs, _ := protowire.ConsumeBytes(req[n:])
			sizes = append(sizes, len(rs))
		}
		req = req[n+protowire.ConsumeFieldValue(num, typ, req[n:]):]
	}
	return sizes
}

func tellsAddress(r *resourcepb.Resource) bool {
	for _, kv := range r.GetAttributes() {
		switch kv.GetKey() {
		case "k8s.pod.uid", "k8s.pod.ip", "app.host.ip", "host.ip", "net.host.ip":
			return true
		}
	}
	return false
}

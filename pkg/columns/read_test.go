package columns_test

import (
	"bytes"
	"fmt"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/columns"
)

// row is one row of a block, decoded from its native format with ch-go's decoders.
type row struct {
	TraceID, SpanID, ParentSpanID, TraceState string
	Flags                                     uint32
	Name, Kind, StatusCode, StatusMessage     string
	Start                                     uint64
	Duration                                  int64
	Attributes                                []pair
	Dropped                                   [3]uint32 // attributes, events, links
	Events                                    []event
	Links                                     []link
	Service, Pod, Resource, Origin, Scope     string
	Protocol, Method, Endpoint, ResponseCode  string
	IP, PeerIP                                string
	Port, PeerPort                            uint16
}

type pair struct{ Key, Value string }

type event struct {
	Time       uint64
	Name       string
	Attributes []pair
	Dropped    uint32
}

type link struct {
	TraceID, SpanID, TraceState string
	Attributes                  []pair
	Dropped, Flags              uint32
}

// list decodes an Array of Tuples.
type list struct {
	offsets proto.ColUInt64
	proto.ColTuple
	typ proto.ColumnType
}

func (l *list) Type() proto.ColumnType { return l.typ }
func (l *list) Rows() int              { return l.offsets.Rows() }
func (l *list) DecodeColumn(r *proto.Reader, rows int) error {
	if err := l.offsets.DecodeColumn(r, rows); err != nil {
		return err
	}
	return l.ColTuple.DecodeColumn(r, int(l.offsets[rows-1]))
}

// Infer does nothing: the elements have their types.
func (l *list) Infer(proto.ColumnType) error { return nil }

func (l *list) each(row int, f func(i int)) {
	from := uint64(0)
	if row > 0 {
		from = l.offsets[row-1]
	}
	for i := from; i < l.offsets[row]; i++ {
		f(int(i))
	}
}

func newMap() *proto.ColMap[string, string] {
	return proto.NewMap[string, string](new(proto.ColStr).LowCardinality(), new(proto.ColStr))
}

func pairs(m *proto.ColMap[string, string], i int) []pair {
	var out []pair
	for _, kv := range m.RowKV(i) {
		out = append(out, pair{kv.Key, kv.Value})
	}
	return out
}

// read encodes s as it is sent to ClickHouse and decodes it again.
func read(s *columns.Spans) ([]row, error) {
	var buf proto.Buffer
	block := proto.Block{Rows: s.Rows(), Columns: len(s.Input())}
	if err := block.EncodeRawBlock(&buf, proto.Version, s.Input()); err != nil {
		return nil, err
	}
	text := map[string]*proto.ColStr{}
	words := map[string]*proto.ColLowCardinality[string]{}
	numbers := map[string]*proto.ColUInt32{}
	var (
		spanID                  proto.ColFixedStr
		kind, status            proto.ColEnum
		start                   proto.ColDateTime64
		duration                proto.ColInt64
		ip, peerIP              proto.ColIPv6
		port, peerPort          proto.ColUInt16
		eventTime               proto.ColDateTime64
		eventName               = new(proto.ColStr).LowCardinality()
		eventDropped            proto.ColUInt32
		linkTrace, linkSpan     proto.ColStr
		linkState               proto.ColStr
		linkDropped, linkFlags  proto.ColUInt32
		attributes, onEvent, on = newMap(), newMap(), newMap()
	)
	spanID.SetSize(16)
	events := &list{ColTuple: proto.ColTuple{&eventTime, eventName, onEvent, &eventDropped}}
	links := &list{ColTuple: proto.ColTuple{&linkTrace, &linkSpan, &linkState, on, &linkDropped, &linkFlags}}
	special := map[string]proto.ColResult{
		"span_id": &spanID, "kind": &kind, "status_code": &status,
		"start_time": &start, "duration_ns": &duration, "ip": &ip, "peer_ip": &peerIP, "port": &port, "peer_port": &peerPort,
		"attributes": attributes, "events": events, "links": links,
	}
	var results proto.Results
	for _, c := range s.Input() {
		var data proto.ColResult
		switch typ := c.Data.Type(); {
		case special[c.Name] != nil:
			data = special[c.Name]
			if l, ok := data.(*list); ok {
				l.typ = typ
			}
		case typ == "String":
			text[c.Name] = new(proto.ColStr)
			data = text[c.Name]
		case typ == "LowCardinality(String)":
			words[c.Name] = new(proto.ColStr).LowCardinality()
			data = words[c.Name]
		case typ == "UInt32":
			numbers[c.Name] = new(proto.ColUInt32)
			data = numbers[c.Name]
		default:
			return nil, fmt.Errorf("column %s has the unexpected type %s", c.Name, typ)
		}
		results = append(results, proto.ResultColumn{Name: c.Name, Data: data})
	}
	var decoded proto.Block
	if err := decoded.DecodeRawBlock(proto.NewReader(bytes.NewReader(buf.Buf)), proto.Version, results); err != nil {
		return nil, err
	}
	var rows []row
	for i := range s.Rows() {
		r := row{
			TraceID: text["trace_id"].Row(i), SpanID: string(spanID.Row(i)),
			ParentSpanID: text["parent_span_id"].Row(i), TraceState: text["trace_state"].Row(i),
			Flags: numbers["flags"].Row(i), Name: words["name"].Row(i), Kind: kind.Row(i),
			StatusCode: status.Row(i), StatusMessage: text["status_message"].Row(i),
			Start: uint64(start.Data[i]), Duration: duration.Row(i), Attributes: pairs(attributes, i),
			Dropped: [3]uint32{
				numbers["dropped_attributes_count"].Row(i), numbers["dropped_events_count"].Row(i), numbers["dropped_links_count"].Row(i),
			},
			Service: words["service_name"].Row(i), Pod: words["pod"].Row(i), Resource: words["resource"].Row(i),
			Origin: words["origin"].Row(i), Scope: words["scope"].Row(i),
			Protocol: words["protocol"].Row(i), Method: words["method"].Row(i), Endpoint: words["endpoint"].Row(i),
			ResponseCode: words["response_code"].Row(i),
			IP:           ip.Row(i).ToIP().String(), PeerIP: peerIP.Row(i).ToIP().String(), Port: port.Row(i), PeerPort: peerPort.Row(i),
		}
		events.each(i, func(e int) {
			r.Events = append(r.Events, event{uint64(eventTime.Data[e]), eventName.Row(e), pairs(onEvent, e), eventDropped.Row(e)})
		})
		links.each(i, func(l int) {
			r.Links = append(r.Links, link{linkTrace.Row(l), linkSpan.Row(l), linkState.Row(l), pairs(on, l), linkDropped.Row(l), linkFlags.Row(l)})
		})
		rows = append(rows, r)
	}
	return rows, nil
}

package jaeger

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/query"
	storage "github.com/metaflowys/metaflow-server/schema/jaegerstorage"
)

// Service answers Jaeger. It is safe for concurrent use.
type Service struct {
	storage.UnimplementedTraceReaderServer
	storage.UnimplementedDependencyReaderServer
	storage.UnimplementedCapabilitiesServer
	reader *query.Reader
}

// NewService returns a Service over a Reader.
func NewService(reader *query.Reader) *Service { return &Service{reader: reader} }

// Register adds the service to a server.
func (s *Service) Register(to grpc.ServiceRegistrar) {
	storage.RegisterTraceReaderServer(to, s)
	storage.RegisterDependencyReaderServer(to, s)
	storage.RegisterCapabilitiesServer(to, s)
}

// GetCapabilities implements storage.CapabilitiesServer.
func (s *Service) GetCapabilities(context.Context, *storage.GetCapabilitiesRequest) (*storage.GetCapabilitiesResponse, error) {
	return &storage.GetCapabilitiesResponse{Search: &storage.SearchCapabilities{WithoutServiceName: true, SameSpanConjunction: true}}, nil
}

// GetTraces implements storage.TraceReaderServer.
func (s *Service) GetTraces(req *storage.GetTracesRequest, stream grpc.ServerStreamingServer[storage.TracesData]) error {
	for _, q := range req.Query {
		id, err := query.TraceID(hex.EncodeToString(q.TraceId))
		if err != nil {
			return statusOf(err)
		}
		if err := s.getTrace(id, query.Range{Start: timeOf(q.StartTime), End: timeOf(q.EndTime)}, stream); err != nil {
			return statusOf(err)
		}
	}
	return nil
}

// getTrace sends a trace if it is stored.
func (s *Service) getTrace(id string, in query.Range, stream grpc.ServerStreamingServer[storage.TracesData]) error {
	made, err := s.reader.Answers().Make(stream.Context())
	if err != nil {
		return err
	}
	defer made()
	t, err := s.reader.Trace(stream.Context(), id, in)
	if errors.Is(err, query.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	release, err := s.reader.Answers().Hold((&ptrace.ProtoMarshaler{}).TracesSize(t.OTLP))
	if err != nil {
		return err
	}
	defer release()
	made()
	return send(t, stream)
}

// timeOf returns the zero time for a missing time.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil || t.Seconds == 0 && t.Nanos == 0 || t.AsTime().Year() <= 1 {
		return time.Time{}
	}
	return t.AsTime()
}

// GetServices implements storage.TraceReaderServer.
func (s *Service) GetServices(ctx context.Context, _ *storage.GetServicesRequest) (*storage.GetServicesResponse, error) {
	found, err := s.reader.Services(ctx)
	return &storage.GetServicesResponse{Services: found}, statusOf(err)
}

// GetOperations implements storage.TraceReaderServer.
func (s *Service) GetOperations(ctx context.Context, req *storage.GetOperationsRequest) (*storage.GetOperationsResponse, error) {
	found, err := s.reader.Operations(ctx, req.Service, req.SpanKind)
	resp := &storage.GetOperationsResponse{}
	for _, o := range found {
		if o.Kind == "unspecified" {
			o.Kind = ""
		}
		resp.Operations = append(resp.Operations, &storage.Operation{Name: o.Name, SpanKind: o.Kind})
	}
	return resp, statusOf(err)
}

// FindTraces implements storage.TraceReaderServer. Jaeger's UI shows a trace that was found
// without asking for it again, so it has what the network did.
func (s *Service) FindTraces(req *storage.FindTracesRequest, stream grpc.ServerStreamingServer[storage.TracesData]) error {
	search, err := searchOf(req.Query)
	if err == nil {
		err = s.reader.FindTraces(stream.Context(), search, func(t query.Trace) error { return send(t, stream) })
	}
	return statusOf(err)
}

// FindTraceIDs implements storage.TraceReaderServer.
func (s *Service) FindTraceIDs(ctx context.Context, req *storage.FindTraceIDsRequest) (*storage.FindTraceIDsResponse, error) {
	found, err := s.find(ctx, req.Query)
	resp := &storage.FindTraceIDsResponse{}
	for _, t := range found {
		id, decodeErr := hex.DecodeString(t.TraceID)
		err = errors.Join(err, decodeErr)
		resp.TraceIds = append(resp.TraceIds, &storage.FoundTraceID{TraceId: id, Start: timestamppb.New(t.Start), End: timestamppb.New(t.End)})
	}
	return resp, statusOf(err)
}

// FindTraceSummaries implements storage.TraceReaderServer.
func (s *Service) FindTraceSummaries(req *storage.FindTraceSummariesRequest, stream grpc.ServerStreamingServer[storage.FindTraceSummariesResponse]) error {
	found, err := s.find(stream.Context(), req.Query)
	if err != nil || len(found) == 0 {
		return statusOf(err)
	}
	resp := &storage.FindTraceSummariesResponse{}
	for _, t := range found {
		id, err := hex.DecodeString(t.TraceID)
		if err != nil {
			return statusOf(err)
		}
		sum := &storage.TraceSummary{
			TraceId: id, RootServiceName: t.RootService, RootOperationName: t.RootName,
			MinStartTimeUnixNano: uint64(t.Start.UnixNano()), MaxEndTimeUnixNano: uint64(t.End.UnixNano()),
			SpanCount: int32(t.Spans), ErrorSpanCount: int32(t.Errors), OrphanSpanCount: int32(t.Orphans),
		}
		for name, spans := range t.Services {
			sum.Services = append(sum.Services, &storage.ServiceSummary{Name: name, SpanCount: int32(spans), ErrorSpanCount: int32(t.ErrorsOf[name])})
		}
		resp.Summaries = append(resp.Summaries, sum)
	}
	return stream.Send(resp)
}

// GetDependencies implements storage.DependencyReaderServer. The source names the network's
// verdict on an edge in trouble: Jaeger has no other room for it.
func (s *Service) GetDependencies(ctx context.Context, req *storage.GetDependenciesRequest) (*storage.GetDependenciesResponse, error) {
	calls, err := s.reader.Calls(ctx, query.Range{Start: timeOf(req.StartTime), End: timeOf(req.EndTime)})
	resp := &storage.GetDependenciesResponse{}
	for _, c := range calls {
		source := "metaflow"
		if c.Verdict != "" {
			source += ", network: " + c.Verdict
		}
		resp.Dependencies = append(resp.Dependencies, &storage.Dependency{Parent: c.Client, Child: c.Server, CallCount: c.Count, Source: source})
	}
	return resp, statusOf(err)
}

func (s *Service) find(ctx context.Context, q *storage.TraceQueryParameters) ([]query.Summary, error) {
	search, err := searchOf(q)
	if err != nil {
		return nil, err
	}
	found, err := s.reader.Find(ctx, search)
	return found.Traces, err
}

// searchOf turns Jaeger's search into ours. All conditions are about one span.
func searchOf(q *storage.TraceQueryParameters) (query.Search, error) {
	if q == nil {
		return query.Search{}, fmt.Errorf("%w: the query is missing", query.ErrBadRequest)
	}
	if n := len(q.Attributes); n > query.MaxConditions {
		return query.Search{}, fmt.Errorf("%w: %d tags are more than %d", query.ErrBadRequest, n, query.MaxConditions)
	}
	var and query.And
	is := func(f query.Field, op query.Op, v query.Literal) {
		and = append(and, query.Compare{Field: f, Op: op, Value: v})
	}
	if q.ServiceName != "" {
		is(query.Field{Scope: query.Resource, Name: "service.name"}, query.Equal, query.Str(q.ServiceName))
	}
	if q.OperationName != "" {
		is(query.Field{Name: query.FieldName}, query.Equal, query.Str(q.OperationName))
	}
	if d := q.DurationMin.AsDuration(); d > 0 {
		is(query.Field{Name: query.FieldDuration}, query.GreaterEqual, query.Dur(d))
	}
	if d := q.DurationMax.AsDuration(); d > 0 {
		is(query.Field{Name: query.FieldDuration}, query.LessEqual, query.Dur(d))
	}
	for _, a := range q.Attributes {
		and = append(and, attributeIs(a.Key, textOf(a.Value)))
	}
	return query.Search{
		Range: query.Range{Start: timeOf(q.StartTimeMin), End: timeOf(q.StartTimeMax)}, Where: and, Limit: int(q.SearchDepth),
	}, nil
}

// attributeIs is the condition of a tag, which may stand at the span, its resource or one
// of its events. Some tags are Jaeger's names for what OTLP has fields for.
func attributeIs(key, value string) query.Expr {
	field := func(name string, v query.Literal) query.Expr {
		return query.Compare{Field: query.Field{Name: name}, Op: query.Equal, Value: v}
	}
	switch {
	case key == "error" && value == "true":
		return field(query.FieldStatus, query.Keyword("error"))
	case key == "span.kind":
		return field(query.FieldKind, query.Keyword(value))
	case key == query.AttributeVerdict:
		return field(query.FieldVerdict, query.Str(value))
	case key == "otel.scope.name":
		return field(query.FieldScopeName, query.Str(value))
	case key == "otel.scope.version":
		return field(query.FieldScopeVersion, query.Str(value))
	}
	at := func(scope query.Scope) query.Expr {
		return query.Compare{Field: query.Field{Scope: scope, Name: key}, Op: query.Equal, Value: query.Str(value)}
	}
	return query.Or{at(query.AnyScope), at(query.Event)}
}

// textOf returns a value as the table has it.
func textOf(v *storage.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *storage.AnyValue_StringValue:
		return v.StringValue
	case *storage.AnyValue_BoolValue:
		return strconv.FormatBool(v.BoolValue)
	case *storage.AnyValue_IntValue:
		return strconv.FormatInt(v.IntValue, 10)
	case *storage.AnyValue_DoubleValue:
		return strconv.FormatFloat(v.DoubleValue, 'f', -1, 64)
	default:
		return "" // Jaeger's search has no lists
	}
}

// warningsAttribute is where Jaeger looks for warnings of a span.
const warningsAttribute = "@jaeger@warnings"

func warn(s ptrace.Span, text string) {
	v, ok := s.Attributes().Get(warningsAttribute)
	switch {
	case !ok:
		v = s.Attributes().PutEmpty(warningsAttribute)
		v.SetEmptySlice()
	case v.Type() != pcommon.ValueTypeSlice: // an attribute of the sender
		sent := v.AsString()
		v.SetEmptySlice().AppendEmpty().SetStr(sent)
	}
	v.Slice().AppendEmpty().SetStr(text)
}

// warnOfNetwork adds a warning to a span whose call the network harmed.
func warnOfNetwork(s ptrace.Span) {
	n := query.Network{Verdict: attribute(s, query.AttributeVerdict), Why: attribute(s, query.AttributeWhy)}
	if text := n.Warning(); text != "" {
		warn(s, text)
	}
}

func attribute(s ptrace.Span, key string) string {
	if v, ok := s.Attributes().Get(key); ok {
		return v.AsString()
	}
	return ""
}

// chunkBytes bounds a message: clients of gRPC accept 4 MiB by default.
const chunkBytes = 1 << 20

// send sends a trace in chunks, with its warnings.
func send(t query.Trace, stream grpc.ServerStreamingServer[storage.TracesData]) error {
	sizer := ptrace.ProtoMarshaler{}
	chunk, size := ptrace.NewTraces(), 0
	flush := func() error {
		if size == 0 {
			return nil
		}
		wire, err := sizer.MarshalTraces(chunk)
		if err != nil {
			return err
		}
		var data storage.TracesData
		if err := proto.Unmarshal(wire, &data); err != nil {
			return err
		}
		chunk, size = ptrace.NewTraces(), 0
		return stream.Send(&data)
	}
	first := t.OTLP.ResourceSpans().At(0).ScopeSpans().At(0).Spans().At(0)
	if t.NetworkMissing {
		warn(first, "what the network did is not known: it could not be read, or not within query.network_timeout")
	}
	if t.Cut {
		warn(first, fmt.Sprintf("the trace has more than %d spans; the others are left out (query.max_spans, query.max_result_bytes)", t.Spans))
	}
	for _, rs := range t.OTLP.ResourceSpans().All() {
		for _, ss := range rs.ScopeSpans().All() {
			var to ptrace.ScopeSpans
			open, around := false, scopeSize(sizer, rs, ss)
			for _, s := range ss.Spans().All() {
				warnOfNetwork(s)
				n := sizer.SpanSize(s)
				if size > 0 && size+around+n > chunkBytes {
					if err := flush(); err != nil {
						return err
					}
					open = false
				}
				if !open {
					to, open = appendScope(chunk, rs, ss), true
					size += around
				}
				s.MoveTo(to.Spans().AppendEmpty())
				size += n
			}
		}
	}
	return flush()
}

// scopeSize returns the bytes of a scope without spans, with its resource.
func scopeSize(sizer ptrace.ProtoMarshaler, rs ptrace.ResourceSpans, ss ptrace.ScopeSpans) int {
	t := ptrace.NewTraces()
	appendScope(t, rs, ss)
	return sizer.TracesSize(t)
}

// appendScope adds a scope without spans, with its resource.
func appendScope(to ptrace.Traces, rs ptrace.ResourceSpans, ss ptrace.ScopeSpans) ptrace.ScopeSpans {
	r := to.ResourceSpans().AppendEmpty()
	rs.Resource().CopyTo(r.Resource())
	r.SetSchemaUrl(rs.SchemaUrl())
	s := r.ScopeSpans().AppendEmpty()
	ss.Scope().CopyTo(s.Scope())
	s.SetSchemaUrl(ss.SchemaUrl())
	return s
}

// statusOf turns an error of a Reader into a status. nil stays nil.
func statusOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, query.ErrBadRequest):
		return status.Error(codes.InvalidArgument, err.Error())
	case fault.ClassOf(err) == fault.Rejected:
		return status.Error(codes.ResourceExhausted, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}

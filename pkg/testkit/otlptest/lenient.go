package otlptest

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// Lenient is a message type as the official protobuf runtime reads it when it does not ask whether texts are
// UTF-8: as the same message of proto2.
type Lenient struct{ protoreflect.MessageType }

// NewLenient returns the type of m.
func NewLenient(m proto.Message) (Lenient, error) {
	files := new(protoregistry.Files)
	descriptor := m.ProtoReflect().Descriptor()
	if err := addProto2(files, descriptor.ParentFile()); err != nil {
		return Lenient{}, fmt.Errorf("proto2 of %s: %w", descriptor.FullName(), err)
	}
	found, err := files.FindDescriptorByName(descriptor.FullName())
	if err != nil {
		return Lenient{}, err
	}
	return Lenient{dynamicpb.NewMessageType(found.(protoreflect.MessageDescriptor))}, nil
}

// addProto2 adds file, and before it what it imports.
func addProto2(files *protoregistry.Files, file protoreflect.FileDescriptor) error {
	if _, err := files.FindFileByPath(file.Path()); err == nil {
		return nil
	}
	for i := range file.Imports().Len() {
		if err := addProto2(files, file.Imports().Get(i).FileDescriptor); err != nil {
			return err
		}
	}
	p := protodesc.ToFileDescriptorProto(file)
	p.Syntax = proto.String("proto2")
	for _, m := range p.GetMessageType() {
		setLabels(m)
	}
	made, err := protodesc.NewFile(p, files)
	if err != nil {
		return err
	}
	return files.RegisterFile(made)
}

func setLabels(m *descriptorpb.DescriptorProto) {
	for _, f := range m.GetField() {
		f.Proto3Optional = nil
	}
	for _, sub := range m.GetNestedType() {
		setLabels(sub)
	}
}

// Repaired returns what the message b says in deterministic bytes, with U+FFFD for each run of bytes
// that are not UTF-8. It fails when the runtime refuses b for another reason.
func (l Lenient) Repaired(b []byte) ([]byte, error) {
	m := l.New().Interface()
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, err
	}
	repair(m.ProtoReflect())
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

func repair(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(strings.ToValidUTF8(v.String(), "\uFFFD")))
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				repair(v.List().Get(i).Message())
			}
		case f.Kind() == protoreflect.MessageKind:
			repair(v.Message())
		}
		return true
	})
}

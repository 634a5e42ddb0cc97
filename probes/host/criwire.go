package host

import (
	"fmt"
	"time"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that is wrapped
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxCodec reads a list of sandboxes without their labels and annotations:
// at 250 pods those are nine tenths of the time and of the memory.
type sandboxCodec struct{ encoding.CodecV2 }

func newSandboxCodec() sandboxCodec { return sandboxCodec{encoding.GetCodecV2("proto")} }

// Unmarshal implements [encoding.CodecV2].
func (c sandboxCodec) Unmarshal(data mem.BufferSlice, v any) error {
	list, ok := v.(*[]Sandbox)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	var err error
	*list, err = parseSandboxList(buf.ReadOnlyData())
	return err
}

// fields yields the fields of an encoded message: the bytes of one that has a
// length, and the number of one that is a varint.
func fields(b []byte, take func(number protowire.Number, value []byte, varint uint64) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var value []byte
		var varint uint64
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(b)
			if value == nil {
				value = []byte{}
			}
		case protowire.VarintType:
			varint, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
			number = 0 // of a kind that is not looked at
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if number == 0 {
			continue
		}
		if err := take(number, value, varint); err != nil {
			return err
		}
	}
	return nil
}

// parseSandboxList reads a ListPodSandboxResponse (k8s.io/cri-api, api.proto):
// items = 1, of each id = 1, metadata = 2, state = 3, created_at = 4.
func parseSandboxList(b []byte) (all []Sandbox, err error) {
	err = fields(b, func(number protowire.Number, item []byte, _ uint64) error {
		if number != 1 || item == nil {
			return nil
		}
		if len(all) == maxSandboxes {
			return fmt.Errorf("more than %d sandboxes: %w", maxSandboxes, ErrTooLarge)
		}
		s := Sandbox{Ready: true, Created: time.Unix(0, 0)}
		if err := fields(item, s.take); err != nil {
			return err
		}
		all = append(all, s)
		return nil
	})
	return all, err
}

func (s *Sandbox) take(number protowire.Number, value []byte, varint uint64) error {
	switch {
	case number == 1 && value != nil:
		s.ID = clip(string(value))
	case number == 2 && value != nil:
		return fields(value, s.takeMetadata)
	case number == 3 && value == nil:
		s.Ready = cri.PodSandboxState(varint) == cri.PodSandboxState_SANDBOX_READY
	case number == 4 && value == nil:
		s.Created = time.Unix(0, int64(varint))
	}
	return nil
}

// takeMetadata reads a PodSandboxMetadata: name = 1, uid = 2, namespace = 3, attempt = 4.
func (s *Sandbox) takeMetadata(number protowire.Number, value []byte, varint uint64) error {
	switch {
	case number == 4 && value == nil:
		s.Attempt = uint32(varint)
	case value == nil:
	case number == 1:
		s.Name = clip(string(value))
	case number == 2:
		s.UID = clip(string(value))
	case number == 3:
		s.Namespace = clip(string(value))
	}
	return nil
}

package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/iotest"
	"time"

	"github.com/godbus/dbus/v5"
)

// FuzzBusReader reads whatever a peer may send: the reader passes it on
// unchanged, up to the first thing that is no message.
func FuzzBusReader(f *testing.F) {
	var buf bytes.Buffer
	signal := &dbus.Message{Type: dbus.TypeSignal, Body: []any{true}, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/a")), dbus.FieldInterface: dbus.MakeVariant("a.b"),
		dbus.FieldMember: dbus.MakeVariant("C"), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(true)),
	}}
	for range 3 {
		if err := signal.EncodeTo(&buf, binary.LittleEndian); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(buf.Bytes())
	f.Add([]byte("l\x02\x00\x01\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := busReader{r: iotest.HalfReader(bytes.NewReader(b))}
		r.begin()
		got, err := io.ReadAll(&r)
		if !bytes.HasPrefix(b, got) {
			t.Errorf("%q became %q", b, got)
		}
		if err == nil && len(got) != len(b) {
			t.Errorf("%d of %d bytes and no error", len(got), len(b))
		}
		if errors.Is(err, ErrTooLarge) && r.left > maxMessage {
			t.Error("a large message is begun")
		}
	})
}

func TestBusReader(t *testing.T) {
	t.Parallel()
	head := func(order binary.ByteOrder, first byte, fields, body uint32) []byte {
		b := append([]byte{first, 2, 0, 1}, make([]byte, 12)...)
		order.PutUint32(b[4:], body)
		order.PutUint32(b[12:], fields)
		return b
	}
	for _, test := range []struct {
		name string
		in   []byte
		want error
	}{
		{"little", append(head(binary.LittleEndian, 'l', 5, 3), make([]byte, 11)...), nil},
		{"big", append(head(binary.BigEndian, 'B', 8, 0), make([]byte, 8)...), nil},
		{"body", head(binary.LittleEndian, 'l', 0, 100<<20), ErrTooLarge},
		{"fields", head(binary.LittleEndian, 'l', 1<<31, 1<<31), ErrTooLarge},
		{"cut", head(binary.LittleEndian, 'l', 0, 0)[:9], io.ErrUnexpectedEOF},
	} {
		r := busReader{r: bytes.NewReader(test.in)}
		r.begin()
		if got, err := io.ReadAll(&r); !errors.Is(err, test.want) || err == nil && !bytes.Equal(got, test.in) {
			t.Errorf("%s: %d bytes, %v", test.name, len(got), err)
		}
	}
}

// counted is a connection whose reads are counted.
type counted struct {
	net.Conn
	in    io.Reader
	reads int
}

func (c *counted) Read(p []byte) (int, error) {
	c.reads++
	return c.in.Read(p)
}

func (c *counted) Write(p []byte) (int, error)      { return len(p), nil }
func (c *counted) SetWriteDeadline(time.Time) error { return nil }

// TestBusConnReadsAtOnce holds that messages that have come together take one read,
// and not one for each field of each head, as the library asks for them.
func TestBusConnReadsAtOnce(t *testing.T) {
	t.Parallel()
	var in bytes.Buffer
	for range 3 {
		signal := &dbus.Message{Type: dbus.TypeSignal, Body: []any{"a", map[string]dbus.Variant{"b": dbus.MakeVariant(uint64(1))}}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/a")), dbus.FieldInterface: dbus.MakeVariant("a.b"),
			dbus.FieldMember: dbus.MakeVariant("C"), dbus.FieldSignature: dbus.MakeVariant(dbus.ParseSignatureMust("sa{sv}")),
		}}
		if err := signal.EncodeTo(&in, binary.LittleEndian); err != nil {
			t.Fatal(err)
		}
	}
	c := &counted{in: &in}
	bus := newBusConn(c)
	bus.Write([]byte("BEGIN\r\n"))
	for range 3 {
		if _, err := dbus.DecodeMessage(bus); err != nil {
			t.Fatal(err)
		}
	}
	if c.reads != 1 {
		t.Errorf("%d reads, want 1", c.reads)
	}
}

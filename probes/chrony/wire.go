package chrony

import (
	"bytes"
	"encoding/binary"
	"math"
	"time"

	wire "github.com/facebook/time/ntp/chrony"
)

// What follows reads answers as the library does, without its reflection, which takes
// ten times as long and leaves garbage each time; a test compares them.

// numbers are read one after the other.
type numbers struct{ rest []byte }

func (n *numbers) bytes(size int) []byte {
	b := n.rest[:size]
	n.rest = n.rest[size:]
	return b
}

func (n *numbers) uint16() uint16 { return binary.BigEndian.Uint16(n.bytes(2)) }
func (n *numbers) uint32() uint32 { return binary.BigEndian.Uint32(n.bytes(4)) }

// float is chrony's: 7 bits of exponent and 25 of coefficient, both signed.
func (n *numbers) float() float64 {
	x := int32(n.uint32())
	return math.Ldexp(float64(x<<7>>7), int(x>>25)-25)
}

// time is one of 64 bits, where half a number says that there are only 32.
func (n *numbers) time() time.Time {
	high, low, ns := n.uint32(), n.uint32(), n.uint32()
	if high == math.MaxInt32 {
		high = 0
	}
	return time.Unix(int64(uint64(high)<<32|uint64(low)), int64(ns))
}

func (n *numbers) address() (a wire.IPAddr) {
	copy(a.IP[:], n.bytes(16))
	a.Family, a.Pad = n.uint16(), n.uint16()
	return a
}

// addressOf is the inverse of [numbers.address].
func addressOf(s *wire.SourceData) []byte {
	b := binary.BigEndian.AppendUint16(s.IPAddr.IP[:len(s.IPAddr.IP):len(s.IPAddr.IP)], s.IPAddr.Family)
	return binary.BigEndian.AppendUint16(b, s.IPAddr.Pad)
}

// parseTracking reads the data of a reply to the question for chronyd's state.
func parseTracking(data []byte) (t wire.Tracking) {
	n := numbers{data}
	t.RefID = n.uint32()
	at := n.address()
	t.IPAddr = at.ToNetIP()
	t.Stratum, t.LeapStatus = n.uint16(), n.uint16()
	t.RefTime = n.time()
	for _, f := range []*float64{&t.CurrentCorrection, &t.LastOffset, &t.RMSOffset, &t.FreqPPM, &t.ResidFreqPPM, &t.SkewPPM,
		&t.RootDelay, &t.RootDispersion, &t.LastUpdateInterval} {
		*f = n.float()
	}
	return t
}

// parseSource reads the data of a reply to the question for a source.
func parseSource(data []byte) (s wire.SourceData) {
	n := numbers{data}
	at := n.address()
	s.IPAddr = &at
	s.Poll, s.Stratum = int16(n.uint16()), n.uint16()
	s.State, s.Mode = wire.SourceStateType(n.uint16()), wire.ModeType(n.uint16())
	s.Flags, s.Reachability, s.SinceSample = n.uint16(), n.uint16(), n.uint32()
	s.OrigLatestMeas, s.LatestMeas, s.LatestMeasErr = n.float(), n.float(), n.float()
	return s
}

// parseCount reads how many sources there are.
func parseCount(data []byte) int { return int(binary.BigEndian.Uint32(data)) }

// parseName reads the name of a source, which ends with a zero byte where it is shorter.
func parseName(data []byte) string {
	name, _, _ := bytes.Cut(data, []byte{0})
	return string(name)
}

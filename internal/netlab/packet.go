package netlab

import (
	"encoding/binary"
	"net/netip"
)

const (
	protocolTCP = 6
	ipHeader    = 20
	tcpHeader   = 20

	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// packet is an IPv4 packet with TCP in it.
type packet []byte

// parse returns the packet in b, or nil for anything else.
func parse(b []byte) packet {
	if len(b) < ipHeader+tcpHeader || b[0]>>4 != 4 || b[9] != protocolTCP {
		return nil
	}
	p := packet(b)
	if n := int(binary.BigEndian.Uint16(b[2:])); n > len(b) || p.head()+tcpHeader > n {
		return nil
	}
	return p
}

func (p packet) head() int    { return int(p[0]&0x0f) * 4 }
func (p packet) tcp() []byte  { return p[p.head():] }
func (p packet) dst() [4]byte { return [4]byte(p[16:20]) }
func (p packet) flags() byte  { return p.tcp()[13] }
func (p packet) ack() uint32  { return binary.BigEndian.Uint32(p.tcp()[8:]) }

func (p packet) srcPort() uint16 { return binary.BigEndian.Uint16(p.tcp()) }
func (p packet) dstPort() uint16 { return binary.BigEndian.Uint16(p.tcp()[2:]) }

// turn exchanges source and destination, which leaves the checksums as they
// are: they are sums.
func (p packet) turn() {
	var src [4]byte
	copy(src[:], p[12:16])
	copy(p[12:16], p[16:20])
	copy(p[16:20], src[:])
}

func (p packet) setSrcPort(port uint16) { p.set(0, port) }
func (p packet) setDstPort(port uint16) { p.set(2, port) }

// set writes a word of the TCP header and corrects the checksum (RFC 1624).
func (p packet) set(offset int, word uint16) {
	tcp := p.tcp()
	sum := uint32(^binary.BigEndian.Uint16(tcp[16:])) + uint32(^binary.BigEndian.Uint16(tcp[offset:])) + uint32(word)
	binary.BigEndian.PutUint16(tcp[offset:], word)
	binary.BigEndian.PutUint16(tcp[16:], ^fold(sum))
}

// reset makes a packet that ends a connection.
func reset(src, dst netip.AddrPort, seq uint32) packet {
	p := make(packet, ipHeader+tcpHeader)
	p[0], p[8], p[9] = 4<<4|ipHeader/4, 64, protocolTCP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	from, to := src.Addr().As4(), dst.Addr().As4()
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	tcp := p.tcp()
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = tcpHeader/4<<4, flagRST
	binary.BigEndian.PutUint16(p[10:], ^fold(sum(p[:ipHeader])))
	pseudo := sum(p[12:20]) + protocolTCP + tcpHeader
	binary.BigEndian.PutUint16(tcp[16:], ^fold(pseudo+sum(tcp)))
	return p
}

// sum adds the words of b, of even length (RFC 1071).
func sum(b []byte) (s uint32) {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

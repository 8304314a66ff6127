package wire_test

import (
	"testing"

	"pallas/mqttgw/wire"
)

func BenchmarkDecode(b *testing.B) {
	for _, golden := range []string{"up-vm-patch", "up-vm", "up-hello"} {
		b.Run(golden, func(b *testing.B) {
			payload := goldenBytes(b, golden)
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if _, err := wire.DecodeUp(payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, golden := range []string{"up-vm-patch", "up-vm", "up-hello"} {
		b.Run(golden, func(b *testing.B) {
			packet, err := wire.DecodeUp(goldenBytes(b, golden))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := wire.EncodeUp(packet); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

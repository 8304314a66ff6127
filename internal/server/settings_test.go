package server

import (
	"testing"
	"time"

	"pallas/internal/config"
)

// A manager whose machine lost its power says goodbye to nobody: an idle device
// finds out at its next ping. It must not be called lost before that.
func TestStartGraceOutlivesThePingOfAnIdleDevice(t *testing.T) {
	const ping, pause = 30 * time.Second, time.Minute // the agent's, until it gives up and until it tries again
	for _, keepAlive := range []time.Duration{5 * time.Second, time.Duration(Defaults().Devices.KeepAlive), time.Hour} {
		d := Defaults().Devices
		d.KeepAlive = config.Duration(keepAlive)
		if got := d.startGrace(); got < keepAlive+ping+pause {
			t.Errorf("keep-alive %v: devices have %v to come back", keepAlive, got)
		}
	}
}

// A report is not to be sent again while its receipt cannot have come.
func TestResendWaitsForTheReceipt(t *testing.T) {
	for _, sync := range []time.Duration{0, time.Second, 10 * time.Second, time.Minute} {
		if got, held := time.Duration(resend(sync))*time.Millisecond, receiptDelay(sync); got < held+3*time.Second {
			t.Errorf("sync %v: receipts are held for %v, reports sent again after %v", sync, held, got)
		}
	}
}

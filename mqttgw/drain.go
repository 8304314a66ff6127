package mqttgw

import (
	"context"
	"time"
)

// Drain closes the door to newcomers and returns when the packets that wait are
// taken and the receipts for what is in the log are given: soon, because what
// comes meanwhile is not waited for. Run goes on; whoever drains ends it then.
func (g *Gateway) Drain(ctx context.Context) {
	g.broker.open.Store(false)
	ctx, cancel := context.WithTimeout(ctx, g.cfg.ReceiptDelay+10*receiptTick)
	defer cancel()
	tick := time.NewTicker(receiptTick)
	defer tick.Stop()
	for g.owes(ctx) {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	if nc := g.devices.Load(); nc != nil {
		_ = nc.FlushTimeout(time.Second) // what is lost is only sent again
	}
}

// owes says whether any device waits for an answer, as far as can be found out
// before ctx is done.
func (g *Gateway) owes(ctx context.Context) bool {
	answers := make(chan bool, len(g.shards))
	for _, sh := range g.shards {
		sh.do(func() {
			sh.mu.Lock()
			defer sh.mu.Unlock()
			answers <- len(sh.ready) > 0 || len(sh.receipts) > 0
		})
	}
	owed := false
	for range g.shards {
		select {
		case a := <-answers:
			owed = owed || a
		case <-g.done:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return owed
}

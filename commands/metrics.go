package commands

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
)

type metrics struct {
	commands *prometheus.CounterVec
	retries  *prometheus.CounterVec
	loads    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, aggregates *cache) (metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pallas", Subsystem: "commands", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, value func(aggregates, bytes int) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "pallas", Subsystem: "commands", Name: name, Help: help}, func() float64 {
			return float64(value(aggregates.usage()))
		})
	}
	m := metrics{
		commands: counter("total", "Commands by type and result: changed, unchanged, a kind of refusal, or error.", "type", "result"),
		retries:  counter("retries_total", "Decisions made anew, by reason: conflict or unavailable.", "reason"),
		loads:    counter("aggregate_loads_total", "Uses of an aggregate's state, by where it came from: cache or log.", "from"),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.commands, m.retries, m.loads,
		gauge("cached_aggregates", "Aggregates whose state is in memory.", func(n, _ int) int { return n }),
		gauge("cache_bytes", "About how much memory they take.", func(_, n int) int { return n }),
	} {
		if err := r.Register(c); err != nil {
			return m, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// count records how a command went.
func (m metrics) count(c Command, r Result, err error) {
	result := "unchanged"
	switch kind := KindOf(err); {
	case kind != "":
		result = string(kind)
	case errors.Is(err, events.ErrUnavailable):
		result = "unavailable"
	case err != nil:
		result = "error"
	case r.Changed:
		result = "changed"
	}
	m.commands.WithLabelValues(typeName(c), result).Inc()
}

// typeName is the command's type without its package, such as "RequestTask".
func typeName(c Command) string {
	const pkg = "commands."
	name := fmt.Sprintf("%T", c)
	if len(name) > len(pkg) && name[:len(pkg)] == pkg {
		return name[len(pkg):]
	}
	return name
}

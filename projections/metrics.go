package projections

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the projection tells about itself.
type metrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector

	batch    prometheus.Histogram
	seconds  prometheus.Histogram
	errors   prometheus.Counter
	rebuilds *prometheus.CounterVec
}

// newMetrics registers the metrics of d; a nil registerer keeps them private.
func newMetrics(r prometheus.Registerer, d *DB) (*metrics, error) {
	m := &metrics{
		registerer: r,
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "pallas_projection_batch_decisions",
			Help:    "Decisions per committed transaction.",
			Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000},
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "pallas_projection_batch_seconds",
			Help:    "Time to apply and commit one transaction.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8),
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pallas_projection_apply_errors_total",
			Help: "Batches that could not be read, applied or committed.",
		}),
		rebuilds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pallas_projection_rebuilds_total",
			Help: "How often the read model was started anew, by reason.",
		}, []string{"reason"}),
	}
	m.collectors = []prometheus.Collector{
		m.batch, m.seconds, m.errors, m.rebuilds,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pallas_projection_position",
			Help: "Position of the newest decision in the read model.",
		}, func() float64 { return float64(d.Status().Position) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pallas_projection_lag",
			Help: "Decisions of the log that the read model does not include yet.",
		}, func() float64 { return float64(d.Status().Lag) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pallas_projection_stopped",
			Help: "1 when the projection stands still before an event it cannot apply.",
		}, func() float64 {
			if d.Status().Err != nil {
				return 1
			}
			return 0
		}),
	}
	if r == nil {
		return m, nil
	}
	for i, c := range m.collectors {
		if err := r.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			m.unregister()
			return nil, err
		}
	}
	return m, nil
}

// unregister takes the metrics back, so that a closed DB is not asked.
func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}

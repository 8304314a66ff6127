package server

import (
	"fmt"
	"time"

	"pallas/internal/config"
)

// TelemetryConfig is for measurements, such as the bytes that each device costs.
type TelemetryConfig struct {
	// Interval is how often what is new is written: what a crash can lose.
	Interval config.Duration `yaml:"interval"`
	// Days is how many days are kept.
	Days int `yaml:"days"`
	// MaxBytes bounds the stream of measurements; beyond it the oldest go. 0
	// means that Days alone does.
	MaxBytes int64 `yaml:"max_bytes"`
}

func (c TelemetryConfig) validate() error {
	switch d := time.Duration(c.Interval); {
	case d < time.Second || d > time.Hour:
		return fmt.Errorf("telemetry.interval: %v is out of range, want 1s to 1h", d)
	case c.Days < 1 || c.Days > 3660:
		return fmt.Errorf("telemetry.days: %d is out of range, want 1 to 3660", c.Days)
	case c.MaxBytes < 0:
		return fmt.Errorf("telemetry.max_bytes: %d is negative", c.MaxBytes)
	}
	return nil
}

// telemetryReserve is by how much telemetry stops writing before events do.
func (c Config) telemetryReserve() uint64 {
	return uint64(c.Events.MinFree) + uint64(c.Events.MinFree)/4
}

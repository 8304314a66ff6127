package httpapi

// Bytes is what went over the wire between a device and the device door, with
// IP and TCP headers.
type Bytes struct {
	Received uint64 `json:"received" example:"48211" doc:"Bytes on the wire from the device, with IP and TCP headers."`
	Sent     uint64 `json:"sent" example:"39874" doc:"Bytes on the wire to the device, with IP and TCP headers and what was sent again."`
}

// DayUsage is what one device's connections cost on a day.
type DayUsage struct {
	Day string `json:"day" format:"date" example:"2026-11-23" doc:"Day in UTC."`
	Bytes
}

// DeviceUsage is what a device's connections cost now.
type DeviceUsage struct {
	Today DayUsage `json:"today" doc:"The day that it is now, as far as it is written: a few minutes may be missing."`
}

// FleetDay is what the connections of all devices cost on a day.
type FleetDay struct {
	DayUsage
	Devices int    `json:"devices" minimum:"1" example:"115" doc:"Devices that had a connection."`
	P50     uint64 `json:"p50" example:"81200" doc:"Bytes of both directions that half of these devices did not exceed."`
	P99     uint64 `json:"p99" example:"914388" doc:"Bytes of both directions that 99 of 100 of these devices did not exceed."`
}

// Usage is a span of days.
type Usage[T any] struct {
	Since string `json:"since" format:"date" example:"2026-10-25" doc:"First day."`
	Until string `json:"until" format:"date" example:"2026-11-23" doc:"Last day."`
	Total Bytes  `json:"total" doc:"All of them together."`
	Days  []T    `json:"days" doc:"Day by day, the oldest first. Days on which there was nothing are left out."`
}

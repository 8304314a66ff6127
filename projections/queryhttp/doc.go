// Package queryhttp is the read side's HTTP door: the operations that only
// read.
//
// Devices, virtual machines, tasks and join tokens come from the read model.
// Every answer carries in Pallas-Position the position that it shows at least;
// a request that carries one waits, bounded, until the read model has it.
//
// The event history is not copied anywhere: pages, exports and live streams
// read the log itself and filter here.
//
// It may not import commands.
package queryhttp

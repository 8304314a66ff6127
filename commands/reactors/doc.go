// Package reactors are the system's own hands: what it does by itself when
// something happened, or when time has passed. They follow the event log and
// give commands, or speak to a device through the [Door].
//
//   - Tasks are pushed to their device, pushed again until the device has them,
//     and ended at their deadline.
//   - Presence turns sessions into DeviceConnected and DeviceLost, with a grace
//     time, so that a flapping link or a restarted manager writes nothing.
//   - A retired device loses its session and its open tasks.
//   - An approved device is greeted again.
//
// All of them are driven by level, not by edge: an event only says that a
// device needs looking at. What to do follows from the state that the log
// gives at that moment. Doing it twice does no harm, and what a crash
// interrupted is found again at the next start.
//
// Waiting costs an entry in a heap, not a goroutine: a hundred thousand
// devices may wait at once. What fails is tried again with growing pauses, and
// logged once.
package reactors

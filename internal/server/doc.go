// Package server puts the device manager together: broker, log, write side,
// read side, device door and HTTP API in one process with one data directory.
// It is the only package that knows all of them, and it holds wiring only.
//
// [Init] makes a data directory, [New] checks a configuration and takes the
// ports, and [Server.Run] serves until its context ends. A directory is used
// by one process at a time.
package server

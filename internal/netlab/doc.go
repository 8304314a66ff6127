// Package netlab emulates bad links, packet by packet, for tests with real
// sockets: bandwidth with a bounded queue, delay, jitter, loss, cuts,
// connections that die without a word, NATs that forget, paths that swallow
// large packets, and proxies that answer instead of the server.
//
// [Main] runs a test binary again in a user and network namespace of its own,
// where it may make network interfaces without any right on the machine. A
// [Link] is a TUN interface there. A client dials the link's remote address,
// which is nobody's: the packet goes into the interface, the link holds it as
// long as the emulated path would, exchanges source and destination, and hands
// it back to the kernel, for which it comes from the remote address to its own.
// So both ends of the connection are real TCP of the same kernel, and every
// packet between them, with its headers, passes here and is counted.
//
// The package needs Linux with /dev/net/tun and unprivileged user namespaces,
// and imports nothing of ours.
package netlab

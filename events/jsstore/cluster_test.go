package jsstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
	"pallas/events/jsstore"
)

// cluster runs three servers that replicate among each other.
func cluster(t *testing.T) []*server.Server {
	t.Helper()
	// Each server must know the others from the beginning, so their ports are
	// chosen before.
	var ports []int
	var routes []*url.URL
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var servers []*server.Server
	for i, port := range ports {
		s, _ := serve(t, t.TempDir(), func(o *server.Options) {
			o.DontListen, o.Host, o.Port = false, "127.0.0.1", -1 // else the server does not route
			o.ServerName = fmt.Sprintf("s%d", i)
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}
			o.Routes = routes
		})
		servers = append(servers, s)
	}
	return servers
}

// TestReplicated checks what is different on a stream with replicas: the server
// compares the id before the revision, answers some conflicts with another code,
// and one of three servers may go.
func TestReplicated(t *testing.T) {
	if testing.Short() {
		t.Skip("three servers")
	}
	servers := cluster(t)
	nc, err := nats.Connect("", nats.InProcessServer(servers[0]), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	var s *jsstore.Store
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s, err = jsstore.Open(ctx, jsstore.Config{Conn: nc, Replicas: 3})
		return err
	})
	first := mustAppend(t, s, 0, decide("a"))
	d := decide("b")
	second := mustAppend(t, s, first, d)
	if _, err := s.Append(t.Context(), first, decide("c")); !errors.Is(err, events.ErrConflict) {
		t.Errorf("Append with an old revision: %v, want ErrConflict", err)
	}
	want := events.Appended{Position: second, Duplicate: true}
	for _, expected := range []uint64{0, first, second} {
		if a, err := s.Append(t.Context(), expected, d); a != want || err != nil {
			t.Errorf("the decision again at %d: %+v, %v; want %+v", expected, a, err, want)
		}
	}

	js := jetStream(t, nc)
	if ack, err := js.Publish(t.Context(), string(subject), nil, jetstream.WithMsgID(string(d.ID)),
		jetstream.WithExpectLastSequencePerSubject(first)); err != nil || !ack.Duplicate {
		t.Errorf("the server, asked for a known id with an old revision: %+v, %v; want a duplicate", ack, err)
	}
	// Writers that are on their way at once meet the other code for a conflict.
	won, lost := 0, 0
	errs := make(chan error, 16)
	for range cap(errs) {
		go func() {
			_, err := s.Append(t.Context(), second, decide("c"))
			errs <- err
		}()
	}
	for range cap(errs) {
		switch err := <-errs; {
		case err == nil:
			won++
		case errors.Is(err, events.ErrConflict):
			lost++
		default:
			t.Errorf("one of several writers: %v", err)
		}
	}
	if won != 1 || won+lost != cap(errs) {
		t.Errorf("%d writers won and %d lost, want 1 of %d to win", won, lost, cap(errs))
	}
	// The leader or a replica goes; the other two carry on.
	servers[2].Shutdown()
	servers[2].WaitForShutdown()
	fourth := decide("d")
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		third, err := s.Revision(ctx, subject) // of a replica, which may be behind
		if err == nil {
			_, err = s.Append(ctx, third, fourth)
		}
		return err
	})
	eventually(t, func() error {
		var got []string
		for r, err := range s.Load(t.Context(), subject, 0) {
			if err != nil {
				return err
			}
			got = append(got, r.Entries[0].Event.(events.DeviceRenamed).Name)
		}
		if fmt.Sprint(got) != "[a b c d]" {
			return fmt.Errorf("the aggregate has %v", got)
		}
		return nil
	})
}

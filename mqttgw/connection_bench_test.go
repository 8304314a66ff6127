package mqttgw

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"

	"pallas/events"
	"pallas/mqttgw/wire"
)

var (
	benchDevices = flag.Int("door.devices", 2000, "devices of BenchmarkDoorMemory and BenchmarkHandshakes")
	benchIdle    = flag.Duration("door.idle", 30*time.Second, "how long BenchmarkDoorMemory leaves connected devices alone")
)

// The doors that a process of the test binary may be, by the value of doorEnv.
const (
	doorEnv     = "PALLAS_MQTTGW_DOOR"
	gatewayDoor = "gateway" // of Pallas, with an empty log
	brokerDoor  = "broker"  // nats-server, with the same rights for each device
	tlsDoor     = "tls"     // mutual TLS, and what comes goes back
)

// state is what a door's process says of itself.
type state struct {
	CPU        time.Duration
	Anon       int // bytes
	Heap       uint64
	Stack      uint64
	Goroutines int
}

// remoteDoor is a door in a process of its own.
type remoteDoor struct {
	b      *testing.B
	in     *json.Encoder
	out    *json.Decoder
	muster muster
}

// newRemoteDoor starts a door that knows n devices.
func newRemoteDoor(b *testing.B, kind string, n int) *remoteDoor {
	b.Helper()
	cmd := exec.Command(must(os.Executable())(b))
	cmd.Env = append(os.Environ(), doorEnv+"="+kind)
	cmd.Stderr = os.Stderr
	in, out := must(cmd.StdinPipe())(b), must(cmd.StdoutPipe())(b)
	check(b, cmd.Start())
	b.Cleanup(func() {
		_ = in.Close() // which ends it
		if err := cmd.Wait(); err != nil {
			b.Errorf("door %s: %v", kind, err)
		}
	})
	d := &remoteDoor{b: b, in: json.NewEncoder(in), out: json.NewDecoder(out)}
	check(b, d.in.Encode(n))
	check(b, d.out.Decode(&d.muster))
	return d
}

// state asks the door, which first collects all garbage if it is to rest.
func (d *remoteDoor) state(rest bool) (s state) {
	d.b.Helper()
	check(d.b, d.in.Encode(rest))
	check(d.b, d.out.Decode(&s))
	return s
}

// runDoor is such a process. It makes devices, tells who they are, and says how
// it is each time it is asked, until its input ends.
func runDoor(kind string) error {
	// The helpers of the tests want a test.
	if err := flag.Set("test.benchtime", "1x"); err != nil {
		return err
	}
	var err error
	testing.Benchmark(func(b *testing.B) { err = serveDoor(b, kind) })
	return err
}

func serveDoor(b *testing.B, kind string) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var n int
	if err := in.Decode(&n); err != nil {
		return err
	}
	m := muster{Kind: kind}
	identities := func(d *door, known bool) error {
		m.CA = d.ca.Certificate().Raw
		for range n {
			dev := d.identity()
			if known {
				dev.register(true)
			}
			key, err := x509.MarshalECPrivateKey(dev.key)
			if err != nil {
				return err
			}
			m.Devices = append(m.Devices, identity{ID: dev.id, Cert: dev.cert.Leaf.Raw, Key: key})
		}
		return nil
	}
	d := &door{t: b, root: b}
	if kind == gatewayDoor {
		d = newDoor(b, unlimited)
		m.Address = d.broker.MQTTAddr()
	} else {
		d.ca = newCA(b)
		cert := must(d.ca.IssueServer([]string{"127.0.0.1"}, time.Now(), 0))(b)
		config := &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientCAs: d.ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		}
		if kind == brokerDoor {
			m.Address = bareBroker(b, config)
		} else {
			m.Address = bareTLS(b, config)
		}
	}
	if err := identities(d, kind == gatewayDoor); err != nil {
		return err
	}
	if err := out.Encode(m); err != nil {
		return err
	}
	m = muster{}
	for {
		var rest bool
		if err := in.Decode(&rest); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if d.logs != nil { // they are the tests'
			d.logs.mu.Lock()
			d.logs.b.Reset()
			d.logs.mu.Unlock()
		}
		if rest {
			for range 4 { // each halves stacks
				runtime.GC()
			}
			debug.FreeOSMemory()
		}
		s, err := ownState()
		if err != nil {
			return err
		}
		if err := out.Encode(s); err != nil {
			return err
		}
	}
}

func ownState() (s state, err error) {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	s.Heap, s.Stack, s.Goroutines = mem.HeapInuse, mem.StackInuse, runtime.NumGoroutine()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return s, err
	}
	s.CPU = time.Duration(used.Utime.Nano() + used.Stime.Nano())
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return s, err
	}
	_, anon, _ := strings.Cut(string(status), "RssAnon:")
	_, err = fmt.Sscan(anon, &s.Anon)
	s.Anon *= 1024
	return s, err
}

// inAccount lets everybody in with the rights of its client id: what the
// gateway's callout answers, without asking anybody.
type inAccount struct{ account *server.Account }

func (a *inAccount) Check(c server.ClientAuthentication) bool {
	certs := c.GetTLSConnectionState().PeerCertificates
	if len(certs) == 0 {
		return false
	}
	id := certs[0].Subject.CommonName
	c.RegisterUser(&server.User{Account: a.account, Permissions: &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: []string{wire.Subject(wire.UpTopic(id)), wire.Subject(wire.TelemetryTopic(id))}},
		Subscribe: &server.SubjectPermission{Allow: []string{wire.Subject(wire.DownTopic(id))}},
	}})
	return true
}

func bareBroker(b *testing.B, config *tls.Config) string {
	auth := &inAccount{}
	o := &server.Options{
		ServerName: "bare", DontListen: true, NoSigs: true, NoLog: true, JetStream: true, StoreDir: b.TempDir(),
		CustomClientAuthentication: auth,
	}
	o.MQTT.Host, o.MQTT.Port, o.MQTT.TLSConfig, o.MQTT.TLSTimeout = "127.0.0.1", -1, config, tlsTimeout.Seconds()
	srv := must(server.NewServer(o))(b)
	auth.account = srv.GlobalAccount()
	srv.Start()
	b.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	eventually(b, "the broker is ready", func() bool { return srv.ReadyForConnections(time.Second) })
	return fmt.Sprintf("127.0.0.1:%d", o.MQTT.Port)
}

func bareTLS(b *testing.B, config *tls.Config) string {
	l := must(tls.Listen("tcp4", "127.0.0.1:0", config))(b)
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // told to end
			}
			go func() {
				_, _ = io.CopyBuffer(c, c, make([]byte, 512)) // the client hears of what goes wrong
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// BenchmarkDoorMemory measures what an idle connection takes of a process that
// has Pallas's gateway and an empty log, of one that has nats-server alone, and
// of one that does mutual TLS: what is not mapped from files, less that before.
// "rest" is after the process has collected its garbage four times.
func BenchmarkDoorMemory(b *testing.B) {
	n := *benchDevices
	anon := map[string]float64{}
	for _, kind := range []string{tlsDoor, brokerDoor, gatewayDoor} {
		d := newRemoteDoor(b, kind, n)
		empty := d.state(true)
		f := fleetOf(b, d.muster)
		pause := time.NewTimer(*benchIdle)
		<-pause.C
		for _, rest := range []bool{false, true} {
			s := d.state(rest)
			name := kind
			if rest {
				name += "-rest"
			}
			per := func(now, before float64, unit string) {
				b.ReportMetric((now-before)/float64(n), unit+"/conn-"+name)
			}
			anon[name] = float64(s.Anon - empty.Anon)
			per(anon[name]/1000, 0, "kB")
			per(float64(s.Heap)/1000, float64(empty.Heap)/1000, "heap-kB")
			per(float64(s.Stack)/1000, float64(empty.Stack)/1000, "stack-kB")
			per(float64(s.Goroutines), float64(empty.Goroutines), "goroutines")
		}
		f.stop()
	}
	b.ReportMetric(anon[gatewayDoor]/anon[brokerDoor], "gateway-of-broker")
	b.ReportMetric(anon[gatewayDoor+"-rest"]/anon[brokerDoor+"-rest"], "gateway-of-broker-rest")
	b.ReportMetric(0, "ns/op")
}

// handshakesFor is how long BenchmarkHandshakes connects.
const handshakesFor = 5 * time.Second

// BenchmarkHandshakes has devices connect and leave, 64 at a time, each with a
// full handshake or with the session of its last connection, until MQTT's
// CONNACK, or until the bare server's answer. Both sides share the machine;
// cpu-ms is the door's part of it.
func BenchmarkHandshakes(b *testing.B) {
	rates := map[string]float64{}
	for _, kind := range []string{tlsDoor, gatewayDoor} {
		d := newRemoteDoor(b, kind, *benchDevices)
		d.muster.Callers = true
		f := fleetOf(b, d.muster)
		for _, how := range []string{"full", "resumed"} {
			before := d.state(true)
			t := f.report(order{For: handshakesFor, Resume: how == "resumed"})
			used := d.state(false).CPU - before.CPU
			name := kind + "-" + how
			rates[name] = float64(t.Reports) / t.Seconds
			b.ReportMetric(rates[name], name+"/s")
			b.ReportMetric(used.Seconds()*1000/float64(t.Reports), "cpu-ms/"+name)
		}
		f.stop()
	}
	for _, how := range []string{"full", "resumed"} {
		b.ReportMetric(rates[gatewayDoor+"-"+how]/rates[tlsDoor+"-"+how], how+"-of-tls")
	}
	b.ReportMetric(0, "ns/op")
}

// caller connects and leaves.
type caller struct {
	kind, address string
	id            events.DeviceID
	config        *tls.Config
	sessions      tls.ClientSessionCache
}

func newCaller(m muster, roots *x509.CertPool, id identity) (*caller, error) {
	key, err := x509.ParseECPrivateKey(id.Key)
	if err != nil {
		return nil, err
	}
	c := &caller{kind: m.Kind, address: m.Address, id: id.ID, sessions: tls.NewLRUClientSessionCache(1), config: &tls.Config{
		RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{id.Cert}, PrivateKey: key}},
	}}
	return c, c.call(true)
}

// call connects once.
func (c *caller) call(resume bool) error {
	config := c.config.Clone()
	if resume {
		config.ClientSessionCache = c.sessions
	}
	conn, err := tls.Dial("tcp", c.address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(mqttPacket(0x10, append(append(mqttString("MQTT"), 4, 2, 0, 0), mqttString(string(c.id))...))); err != nil {
		return err
	}
	var answer [4]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if c.kind != tlsDoor && answer[3] != 0 {
		return fmt.Errorf("device %s: CONNACK % x", c.id, answer)
	}
	return nil
}

// callAll has callers connect, 64 at a time, and returns how often they did.
func callAll(callers []*caller, o order, began time.Time) (int, error) {
	ctx, cancel := context.WithDeadline(context.Background(), began.Add(o.For))
	defer cancel()
	const together = 64
	counts, errs := make(chan int, together), make(chan error, together)
	for i := range together {
		go func() {
			n := 0
			var err error
			for j := i; err == nil && ctx.Err() == nil; j, n = (j+together)%(len(callers)/together*together), n+1 {
				err = callers[j].call(o.Resume)
			}
			counts <- n
			errs <- err
		}()
	}
	total := 0
	var err error
	for range together {
		total += <-counts
		err = errors.Join(err, <-errs)
	}
	return total, err
}

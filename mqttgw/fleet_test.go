package mqttgw

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pallas/events"
	"pallas/mqttgw/wire"
)

// fleetEnv, when set, makes the test binary the devices of a benchmark: a
// process of their own has files and memory of its own.
const fleetEnv = "PALLAS_MQTTGW_FLEET"

func TestMain(m *testing.M) {
	var err error
	switch kind := os.Getenv(doorEnv); {
	case kind != "":
		err = runDoor(kind)
	case os.Getenv(fleetEnv) != "":
		err = runFleet(os.Stdin, os.Stdout)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "process of a benchmark:", err)
		os.Exit(1)
	}
}

// muster is what the devices' process is told first.
type muster struct {
	Address string
	CA      []byte // DER
	Devices []identity
	// Kind is the door's; "" is gatewayDoor. Only that one welcomes.
	Kind string
	// Callers connect and leave, and stay away until an order.
	Callers bool
}

type identity struct {
	ID        events.DeviceID
	Cert, Key []byte // DER
}

// order has every device report for a while: Window reports in packets of
// Batch, then the receipt, and so on; or, with a Rate, so many a second of all
// devices together, spread evenly.
type order struct {
	For           time.Duration
	Batch, Window int
	Rate          float64
	Resume        bool // for callers: with the session of the last connection
}

// tally is what came of an order.
type tally struct {
	Reports int
	Seconds float64 // until the last receipt
	Error   string
}

func (t *tally) add(o tally) {
	t.Reports += o.Reports
	t.Seconds += o.Seconds
}

// fleet is devices in another process.
type fleet struct {
	b    *testing.B
	ids  []events.DeviceID
	in   *json.Encoder
	out  *json.Decoder
	stop func()
}

// newFleet registers devices and connects them.
func newFleet(b *testing.B, d *door, n int) *fleet {
	b.Helper()
	var files unix.Rlimit
	check(b, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	if need := uint64(n + 500); files.Cur < need {
		b.Skipf("%d connections need %d open files in this process and as many in that of the devices; the limit is %d: raise it with ulimit -n", n, need, files.Cur)
	}
	m := muster{Address: d.broker.MQTTAddr(), CA: d.ca.Certificate().Raw}
	for range n {
		dev := d.device()
		key := must(x509.MarshalECPrivateKey(dev.key))(b)
		m.Devices = append(m.Devices, identity{ID: dev.id, Cert: dev.cert.Leaf.Raw, Key: key})
	}
	return fleetOf(b, m)
}

// fleetOf connects devices that the door knows.
func fleetOf(b *testing.B, m muster) *fleet {
	b.Helper()
	f := &fleet{b: b}
	for _, d := range m.Devices {
		f.ids = append(f.ids, d.ID)
	}
	cmd := exec.Command(must(os.Executable())(b))
	cmd.Env = append(os.Environ(), fleetEnv+"=1")
	cmd.Stderr = os.Stderr
	in := must(cmd.StdinPipe())(b)
	out := must(cmd.StdoutPipe())(b)
	check(b, cmd.Start())
	f.stop = sync.OnceFunc(func() {
		_ = in.Close() // which ends it
		if err := cmd.Wait(); err != nil {
			b.Errorf("devices: %v", err)
		}
	})
	b.Cleanup(f.stop)
	f.in, f.out = json.NewEncoder(in), json.NewDecoder(out)
	check(b, f.in.Encode(m))
	f.tally()
	return f
}

// report has the devices do what the order says.
func (f *fleet) report(o order) tally {
	f.b.Helper()
	check(f.b, f.in.Encode(o))
	return f.tally()
}

func (f *fleet) tally() (t tally) {
	f.b.Helper()
	check(f.b, f.out.Decode(&t))
	if t.Error != "" {
		f.b.Fatalf("devices: %s", t.Error)
	}
	return t
}

// runFleet is the devices' process. It answers the muster and each order with
// a tally, until its input ends.
func runFleet(r io.Reader, w io.Writer) error {
	in, out := json.NewDecoder(r), json.NewEncoder(w)
	var m muster
	if err := in.Decode(&m); err != nil {
		return err
	}
	devices, callers, err := connectAll(m)
	if err != nil {
		return out.Encode(tally{Error: err.Error()})
	}
	if err := out.Encode(tally{}); err != nil {
		return err
	}
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var g errgroup.Group
		began := time.Now()
		var reports atomic.Int64
		if m.Callers {
			g.Go(func() error {
				n, err := callAll(callers, o, began)
				reports.Add(int64(n))
				return err
			})
		}
		for i, d := range devices {
			g.Go(func() error {
				n, err := d.obey(o, began, i, len(devices))
				reports.Add(int64(n))
				return err
			})
		}
		t := tally{}
		if err := g.Wait(); err != nil {
			t.Error = err.Error()
		}
		t.Reports, t.Seconds = int(reports.Load()), time.Since(began).Seconds()
		if err := out.Encode(t); err != nil {
			return err
		}
	}
}

// connectAll connects 64 devices at a time.
func connectAll(m muster) ([]*reporter, []*caller, error) {
	ca, err := x509.ParseCertificate(m.CA)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	var devices []*reporter
	var callers []*caller
	if m.Callers {
		callers = make([]*caller, len(m.Devices))
	} else {
		devices = make([]*reporter, len(m.Devices))
	}
	var g errgroup.Group
	g.SetLimit(64)
	for i, id := range m.Devices {
		g.Go(func() (err error) {
			if m.Callers {
				callers[i], err = newCaller(m, roots, id)
			} else {
				devices[i], err = newReporter(m, roots, id)
			}
			return err
		})
	}
	return devices, callers, g.Wait()
}

// reporter is one device, as lean as can be.
type reporter struct {
	id    events.DeviceID
	topic []byte
	conn  net.Conn
	next  uint64
	acked atomic.Uint64
	wake  chan struct{} // room for one: acked moved, or the connection ended
	err   atomic.Pointer[error]
}

func newReporter(m muster, roots *x509.CertPool, id identity) (*reporter, error) {
	key, err := x509.ParseECPrivateKey(id.Key)
	if err != nil {
		return nil, err
	}
	conn, err := tls.Dial("tcp", m.Address, &tls.Config{
		RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{id.Cert}, PrivateKey: key}},
	})
	if err != nil {
		return nil, err
	}
	r := &reporter{id: id.ID, topic: mqttString(wire.UpTopic(string(id.ID))), conn: conn, next: 1, wake: make(chan struct{}, 1)}
	hello, err := wire.EncodeUp(wire.Up{Version: wire.Version, Hello: &wire.Hello{Agent: "bench", Epoch: 1, First: 1, Next: 1, Time: time.Now()}})
	if err != nil {
		return nil, err
	}
	connect := append(append(mqttString("MQTT"), 4, 2, 0, 0), mqttString(string(id.ID))...)
	packets := mqttPacket(0x10, connect)
	packets = append(packets, mqttPacket(0x82, append(append([]byte{0, 1}, mqttString(wire.DownTopic(string(id.ID)))...), 0))...)
	packets = append(packets, mqttPacket(0x30, append(r.topic[:len(r.topic):len(r.topic)], hello...))...)
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(packets); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(conn, 512)
	if m.Kind == tlsDoor {
		_, err = io.ReadFull(in, make([]byte, len(packets)))
	} else if m.Kind == brokerDoor {
		for range 2 { // CONNACK, SUBACK
			if _, err = readDown(in); err != nil {
				break
			}
		}
	}
	if err != nil {
		return nil, err
	}
	for welcomed := m.Kind == tlsDoor || m.Kind == brokerDoor; !welcomed; {
		d, err := readDown(in)
		if err != nil {
			return nil, err
		}
		welcomed = d.Welcome != nil
	}
	_ = conn.SetDeadline(time.Time{})
	go r.read(in)
	return r, nil
}

// readDown reads one packet; the zero Down is one of MQTT's own.
func readDown(r *bufio.Reader) (wire.Down, error) {
	kind, b, err := readMQTT(r)
	if err != nil {
		return wire.Down{}, err
	}
	switch kind >> 4 {
	case 2:
		if b[1] != 0 {
			return wire.Down{}, fmt.Errorf("connect: return code %d", b[1])
		}
	case 3:
		return wire.DecodeDown(b[int(binary.BigEndian.Uint16(b))+2:])
	}
	return wire.Down{}, nil
}

func (r *reporter) read(in *bufio.Reader) {
	for {
		d, err := readDown(in)
		switch {
		case err != nil:
		case d.Receipt != nil:
			r.acked.Store(d.Receipt.Seq)
		case d.Error != nil:
			err = fmt.Errorf("device %s: %s: %s", r.id, d.Error.Code, d.Error.Message)
		case d.Resend != nil:
			err = fmt.Errorf("device %s: report %d was lost", r.id, d.Resend.Seq)
		default:
			continue
		}
		if err != nil {
			r.err.Store(&err)
		}
		select {
		case r.wake <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// obey does what an order says, as device i of n.
func (r *reporter) obey(o order, began time.Time, i, n int) (reports int, err error) {
	first := r.next
	end := began.Add(o.For)
	if o.Rate == 0 {
		for time.Now().Before(end) {
			for sent := 0; sent < o.Window; sent += o.Batch {
				if err := r.send(o.Batch, time.Now()); err != nil {
					return 0, err
				}
			}
			if err := r.await(r.next - 1); err != nil {
				return 0, err
			}
		}
		return int(r.next - first), nil
	}
	interval := time.Duration(float64(n*o.Batch) / o.Rate * float64(time.Second))
	due := began.Add(interval * time.Duration(i) / time.Duration(n))
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	for due.Before(end) {
		<-timer.C
		if window := uint64(o.Window); r.next+uint64(o.Batch) > r.acked.Load()+window {
			if err := r.await(r.next + uint64(o.Batch) - 1 - window); err != nil {
				return 0, err
			}
		}
		if err := r.send(o.Batch, due); err != nil {
			return 0, err
		}
		due = due.Add(interval)
		timer.Reset(time.Until(due))
	}
	return int(r.next - first), r.await(r.next - 1)
}

// powers are what a virtual machine of the benchmarks changes between.
var powers = [2]string{wire.PowerOn, wire.PowerOff}

// send reports another power state of a virtual machine, so many times in one
// packet.
func (r *reporter) send(batch int, at time.Time) error {
	reports := make([]wire.Report, batch)
	for j := range reports {
		reports[j] = wire.Report{Seq: r.next, Time: at, VM: &wire.VM{
			ID: "vm-1", Name: "name", Power: powers[r.next%2], Tools: wire.ToolsUnknown,
		}}
		r.next++
	}
	b, err := wire.EncodeUp(wire.Up{Version: wire.Version, Epoch: 1, Reports: reports})
	if err != nil {
		return err
	}
	_, err = r.conn.Write(mqttPacket(0x30, append(r.topic[:len(r.topic):len(r.topic)], b...)))
	return err
}

// fleetPatience is how long a device waits for a receipt: ten thousand of them
// wait for each other.
const fleetPatience = 2 * time.Minute

// await waits for the receipt of a report.
func (r *reporter) await(seq uint64) error {
	timeout := time.NewTimer(fleetPatience)
	defer timeout.Stop()
	for r.acked.Load() < seq {
		if err := r.err.Load(); err != nil {
			return *err
		}
		select {
		case <-r.wake:
		case <-timeout.C:
			return fmt.Errorf("device %s: no receipt of report %d in %v", r.id, seq, fleetPatience)
		}
	}
	return nil
}

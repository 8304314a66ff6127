package mqttgw

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNewBrokerNamesTheField(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  BrokerConfig
		want string
	}{
		"no directory":   {BrokerConfig{}, "Dir"},
		"negative sync":  {BrokerConfig{Dir: "x", Sync: -1}, "Sync"},
		"negative conns": {BrokerConfig{Dir: "x", MaxConn: -1}, "MaxConn"},
		"no port":        {BrokerConfig{Dir: "x", MQTT: "127.0.0.1", TLS: &tls.Config{}}, "host:port"},
		"wild port":      {BrokerConfig{Dir: "x", MQTT: "127.0.0.1:70000", TLS: &tls.Config{}}, "65535"},
		"plain MQTT":     {BrokerConfig{Dir: "x", MQTT: "127.0.0.1:0"}, "TLS"},
		"no device CA":   {BrokerConfig{Dir: "x", MQTT: ":0", TLS: &tls.Config{}}, "ClientCAs"},
	} {
		if _, err := NewBroker(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error that names %s", name, err, c.want)
		}
	}
}

func startBroker(t *testing.T, cfg BrokerConfig) (*Broker, error) {
	t.Helper()
	if cfg.MQTT != "" {
		cfg.TLS = &tls.Config{ClientCAs: newCA(t).Pool()}
	}
	b := must(NewBroker(cfg))(t)
	err := b.Start(t.Context())
	t.Cleanup(b.Shutdown)
	return b, err
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	t.Run("port in use", func(t *testing.T) {
		l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
		defer l.Close()
		dir := t.TempDir()
		_, err := startBroker(t, BrokerConfig{Dir: dir, MQTT: l.Addr().String()})
		if err == nil || !strings.Contains(err.Error(), "address already in use") || !strings.Contains(err.Error(), l.Addr().String()) {
			t.Fatalf("got %v, want the address in use", err)
		}
		// Nothing is left behind: the directory can be used at once.
		_, err = startBroker(t, BrokerConfig{Dir: dir})
		check(t, err)
	})
	t.Run("directory in use", func(t *testing.T) {
		dir := t.TempDir()
		_, err := startBroker(t, BrokerConfig{Dir: dir})
		check(t, err)
		if _, err := startBroker(t, BrokerConfig{Dir: dir}); !errors.Is(err, ErrLocked) {
			t.Fatalf("got %v, want ErrLocked", err)
		}
	})
	t.Run("directory is a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "f")
		check(t, os.WriteFile(file, nil, 0o600))
		if _, err := startBroker(t, BrokerConfig{Dir: file}); err == nil || !strings.Contains(err.Error(), file) {
			t.Fatalf("got %v, want an error that names %s", err, file)
		}
	})
	t.Run("unwritable directory", func(t *testing.T) {
		const dir = "/proc/pallas" // where not even root can write
		if _, err := startBroker(t, BrokerConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Fatalf("got %v, want an error that names %s", err, dir)
		}
	})
	t.Run("streams cannot be read", func(t *testing.T) {
		dir := t.TempDir()
		check(t, os.WriteFile(filepath.Join(dir, "jetstream"), nil, 0o600))
		_, err := startBroker(t, BrokerConfig{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), dir) {
			t.Fatalf("got %v, want an error that names %s", err, dir)
		}
	})
}

func TestBrokerStartsAgain(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		b, err := startBroker(t, BrokerConfig{Dir: dir, MQTT: "127.0.0.1:0"})
		check(t, err)
		_, port, err := net.SplitHostPort(b.MQTTAddr())
		if err != nil || port == "0" {
			t.Fatalf("address %q, want the port", b.MQTTAddr())
		}
		nc := must(b.Conn("test"))(t)
		check(t, nc.FlushTimeout(patience))
		b.Shutdown()
		b.Shutdown()
		if !nc.IsClosed() {
			t.Error("connection is open after shutdown")
		}
		if _, err := b.Conn("late"); err == nil {
			t.Error("connected to a broker that does not run")
		}
	}
}

// The accounts of the broker do not see each other, and none of its users can
// be guessed.
func TestAccountsAreApart(t *testing.T) {
	b, err := startBroker(t, BrokerConfig{Dir: t.TempDir()})
	check(t, err)
	app, dev, sys := must(b.Conn("a"))(t), must(b.DeviceConn("d"))(t), must(b.SystemConn("s"))(t)
	heard := must(app.SubscribeSync(">"))(t)
	check(t, app.FlushTimeout(patience))
	for _, nc := range []interface{ Publish(string, []byte) error }{dev, sys} {
		check(t, nc.Publish("ev.device.x", []byte("x")))
	}
	check(t, dev.FlushTimeout(patience))
	check(t, sys.FlushTimeout(patience))
	check(t, app.Publish("mark", nil))
	m := must(heard.NextMsg(patience))(t)
	if m.Subject != "mark" {
		t.Errorf("the account of the log heard %q of another one", m.Subject)
	}
}

func TestDoorIsClosedWithoutGateway(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	d.stop()
	before := d.refusals(reasonClosed)
	began := time.Now()
	c := dev.dial(connectOptions{client: string(dev.id)})
	if c.err == nil {
		t.Fatalf("connected, return code %d", c.code)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("refused after %v, want at once", took)
	}
	// The server tells of it when the device knows already.
	eventually(t, "the refusal is counted", func() bool { return d.refusals(reasonClosed) == before+1 })
	d.open()
	dev.connect(wireHello())
}

// The kernel finds out about a device that is gone, whatever keepalive it asked
// for.
func TestWatchPeer(t *testing.T) {
	b := must(NewBroker(BrokerConfig{Dir: "x", UserTimeout: 7 * time.Second}))(t)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	peer := must(net.Dial("tcp", l.Addr().String()))(t)
	defer peer.Close()
	conn := must(l.Accept())(t)
	defer conn.Close()
	b.watchPeer(conn)
	raw := must(conn.(*net.TCPConn).SyscallConn())(t)
	check(t, raw.Control(func(fd uintptr) {
		timeout, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		alive, err2 := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		if err != nil || err2 != nil || timeout != 7000 || alive == 0 {
			t.Errorf("user timeout %d ms (%v), keepalive %d (%v)", timeout, err, alive, err2)
		}
	}))
}

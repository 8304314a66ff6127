package server_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/uuid"

	"pallas/agent/link"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/wire"
)

var identityDevices = flag.Int("identity.devices", 2000, "devices of BenchmarkIdentity")

// BenchmarkIdentity measures what it takes to know devices: how many enrol in a
// second, each over an HTTPS connection of its own; how many connect, from TCP to
// the welcome; and how many renew their certificate over their session. The
// ceiling is a bare accept loop with the same mutual TLS, as a process of its own
// like the manager. It is meant for -benchtime 1x.
func BenchmarkIdentity(b *testing.B) {
	n := *identityDevices
	m := servertest.New(b, func(c *server.Config) {
		d := server.Defaults()
		c.Devices, c.Events = d.Devices, d.Events
		c.Devices.Grace = config.Duration(time.Hour)
	})
	m.Spawn()
	f := &fleet{b: b, m: m, devices: n}
	join, err := wire.ParseJoin(m.JoinWith(client.CreateJoinTokenJSONRequestBody{MaxUses: new(int64(n)), Approve: new(client.CreateJoinTokenApproveAuto)}))
	if err != nil {
		b.Fatal(err)
	}
	list := make([]newcomer, n)
	for i := range list {
		if list[i], err = newNewcomer(i); err != nil {
			b.Fatal(err)
		}
	}
	f.rest()
	enrols := each(b, n, func(i int) error { return list[i].enrol(join) })

	callers := make([]caller, n)
	for i := range callers {
		if callers[i], err = list[i].caller(m.Config.MQTT.Listen); err != nil {
			b.Fatal(err)
		}
	}
	f.rest()
	bare := f.bare()
	var connects, ceiling float64
	const rounds = 3
	for range rounds {
		ceiling += f.connect(bare, callers, echoed) / rounds
		connects += f.connect(m.Config.MQTT.Listen, callers, welcomed) / rounds
		f.rest()
	}
	conns := make([]net.Conn, n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	each(b, n, func(i int) (err error) {
		conns[i], err = callers[i].dial(m.Config.MQTT.Listen, welcomed)
		return err
	})
	f.rest()
	renewals := each(b, n, func(i int) error { return list[i].renew(conns[i]) })
	b.ReportMetric(enrols, "enrols/s")
	b.ReportMetric(connects, "connects/s")
	b.ReportMetric(renewals, "renewals/s")
	b.ReportMetric(ceiling, "bare/s")
	b.ReportMetric(enrols/ceiling, "enrols-of-bare")
	b.ReportMetric(connects/ceiling, "connects-of-bare")
	b.ReportMetric(renewals/ceiling, "renewals-of-bare")
	b.ReportMetric(0, "ns/op")
}

// each does something n times, 64 at a time, and returns how often a second.
func each(b *testing.B, n int, do func(i int) error) float64 {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	began := time.Now()
	for range cap(errs) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					errs <- fmt.Errorf("device %d of %d: %w", i, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	close(errs)
	for err := range errs {
		b.Fatal(err)
	}
	return float64(n) / took.Seconds()
}

// newcomer is a device with a key, whose requests are ready: what a device does
// itself is not measured.
type newcomer struct {
	id     string
	key    *ecdsa.PrivateKey
	csr    []byte
	source net.TCPAddr
	answer wire.EnrollResponse
}

func newNewcomer(i int) (newcomer, error) {
	d := newcomer{id: uuid.NewString(), source: net.TCPAddr{IP: net.IPv4(127, 1, byte(i/250), byte(i%250+1))}}
	var err error
	if d.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return d, err
	}
	d.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.id}}, d.key)
	return d, err
}

func (d *newcomer) enrol(j wire.Join) error {
	body, err := json.Marshal(wire.EnrollRequest{
		Token: j.Token, Device: d.id, Name: "bench", Agent: "bench",
		CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: d.csr})),
	})
	if err != nil {
		return err
	}
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: j.TLS(), DisableKeepAlives: true, DialContext: (&net.Dialer{LocalAddr: &d.source}).DialContext,
	}}
	// A busy manager refuses; devices try again and so does this.
	for attempt := 0; ; attempt++ {
		resp, err := c.Post(j.URL+wire.EnrollPath, "application/json", bytes.NewReader(body))
		if err != nil {
			return err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case err != nil:
			return err
		case resp.StatusCode == http.StatusOK:
			return json.Unmarshal(b, &d.answer)
		case resp.StatusCode != http.StatusServiceUnavailable || attempt == 100:
			return fmt.Errorf("%s: %s", resp.Status, b)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// caller is the device as [fleet.connect] wants it.
func (d *newcomer) caller(addr string) (caller, error) {
	block, _ := pem.Decode([]byte(d.answer.Certificate))
	cas := x509.NewCertPool()
	if block == nil || !cas.AppendCertsFromPEM([]byte(d.answer.CA)) {
		return caller{}, errors.New("an answer without certificates")
	}
	config, err := link.TLSConfig(addr, tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: d.key}, cas, time.Now, false)
	if err != nil {
		return caller{}, err
	}
	config.ClientSessionCache = nil // each connects once
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion, connect.CleanSession = "MQTT", 4, true
	connect.ClientIdentifier, connect.Keepalive = d.id, 240
	sub := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	sub.MessageID, sub.Topics, sub.Qoss = 1, []string{wire.DownTopic(d.id)}, []byte{0}
	var out bytes.Buffer
	if err := errors.Join(connect.Write(&out), sub.Write(&out)); err != nil {
		return caller{}, err
	}
	err = d.publish(&out, wire.Up{Hello: &wire.Hello{Agent: "bench", Epoch: 1, First: 1, Next: 1, Time: time.Now().UTC()}})
	return caller{tls: config, opener: out.Bytes(), device: d.id, source: d.source}, err
}

func (d *newcomer) publish(w io.Writer, u wire.Up) error {
	u.Version = wire.Version
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName = wire.UpTopic(d.id)
	var err error
	if p.Payload, err = wire.EncodeUp(u); err != nil {
		return err
	}
	return p.Write(w)
}

// renew asks for a certificate and waits for it.
func (d *newcomer) renew(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if err := d.publish(c, wire.Up{Renewal: &wire.Renewal{CSR: d.csr}}); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	for {
		p, err := packets.ReadPacket(r)
		if err != nil {
			return err
		}
		if p, ok := p.(*packets.PublishPacket); ok {
			switch down, err := wire.DecodeDown(p.Payload); {
			case err != nil:
				return err
			case down.Error != nil:
				return fmt.Errorf("%s: %s", down.Error.Code, down.Error.Message)
			case down.Certificate != nil && len(down.Certificate.Leaf) > 0:
				return nil
			}
		}
	}
}

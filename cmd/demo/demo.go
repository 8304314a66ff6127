package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"pallas/agent"
	"pallas/agent/hypervisor/esxi"
	"pallas/agent/hypervisor/esxi/vcsim"
	"pallas/agent/identity"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/version"
)

// tokenFile keeps the administrator's token in the demo's folder. A real
// manager keeps none: it prints the token once.
const tokenFile = "admin-token"

// sites are where the simulated hosts stand.
var sites = []string{"fra", "ber", "muc", "ham", "vie", "zrh", "par", "mad", "osl", "ams"}

// demo is a device manager with simulated hosts and their agents.
type demo struct {
	opts  options
	log   *slog.Logger
	token string
	join  string
	hosts []*vcsim.Host
	ready chan struct{}

	manager *server.Server
	cfg     server.Config
	api     *client.ClientWithResponses
}

// ports is what --json prints.
type ports struct {
	URL        string `json:"url"`
	CAFile     string `json:"ca_file"`
	AdminToken string `json:"admin_token"`
	Join       string `json:"join"`
	MQTTAddr   string `json:"mqtt_addr"`
	DataDir    string `json:"data_dir"`
}

func newDemo(ctx context.Context, o options, log *slog.Logger) (*demo, error) {
	d := &demo{opts: o, log: log, ready: make(chan struct{})}
	d.cfg = server.Defaults()
	d.cfg.DataDir = filepath.Join(o.data, "manager")
	d.cfg.HTTP.Listen, d.cfg.MQTT.Listen = d.lastAddr("http", o.listen), d.lastAddr("mqtt", o.mqttListen)
	// A demo is watched: what takes a minute in the field takes seconds here.
	d.cfg.Devices.Grace = config.Duration(5 * time.Second)
	d.cfg.Devices.KeepAlive = config.Duration(20 * time.Second)

	first, err := server.Init(ctx, d.cfg, log, server.FirstAdmin{Token: true})
	switch {
	case errors.Is(err, server.ErrInitialised):
		b, err := os.ReadFile(filepath.Join(o.data, tokenFile))
		if err != nil {
			return nil, fmt.Errorf("%s holds a device manager, but not of a demo: %w", d.cfg.DataDir, err)
		}
		d.token = strings.TrimSpace(string(b))
	case err != nil:
		return nil, err
	default:
		d.token = first.Token
		if err := os.WriteFile(filepath.Join(o.data, tokenFile), []byte(d.token+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("keep the token for the next start: %w", err)
		}
	}
	d.manager, err = server.New(d.cfg, log)
	return d, err
}

func (d *demo) ports() ports {
	data, err := filepath.Abs(d.opts.data)
	if err != nil {
		data = d.opts.data
	}
	return ports{
		URL: d.manager.URL(), CAFile: server.CAFile(d.cfg), AdminToken: d.token, Join: d.join,
		MQTTAddr: d.manager.MQTTAddr(), DataDir: data,
	}
}

// run brings up the manager, then the hosts, then the agents, and takes them
// down together.
func (d *demo) run(ctx context.Context) error {
	defer func() {
		for _, h := range d.hosts {
			h.Close()
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.manager.Run(ctx) })
	select {
	case <-d.manager.Ready():
	case <-ctx.Done():
		return g.Wait()
	}
	g.Go(func() error {
		if err := d.bringUp(ctx, g); err != nil {
			return err
		}
		close(d.ready)
		return nil
	})
	return g.Wait()
}

func (d *demo) bringUp(ctx context.Context, g *errgroup.Group) (err error) {
	if err := d.keepAddrs(); err != nil {
		return err
	}
	if d.api, err = client.Connect(d.manager.URL(), server.CAFile(d.cfg), d.token); err != nil {
		return err
	}
	if d.join, err = d.joinString(ctx); err != nil {
		return err
	}
	for i := range d.opts.hosts {
		site := sites[i%len(sites)]
		name := fmt.Sprintf("esx-%s-%02d.example.net", site, i/len(sites)+1)
		h, err := vcsim.Start(vcsim.Config{Name: name, Count: 3 + i%3, Seed: uint64(i) + 1, Dir: filepath.Join(d.opts.data, "hosts", name)})
		if err != nil {
			return err
		}
		d.hosts = append(d.hosts, h)
		a, err := d.agent(h)
		if err != nil {
			return err
		}
		g.Go(func() error {
			err := a.Run(ctx)
			// Whoever tries the demo may retire a device: the others go on.
			if retired := new(identity.RetiredError); errors.As(err, &retired) {
				d.log.Info("agent ended", "host", h.Name(), "reason", err)
				return nil
			}
			return err
		})
	}
	return nil
}

// lastAddr is the address that a kept demo had when it last ran, if a free port
// is asked for: its agents know the manager by the address they enrolled at.
func (d *demo) lastAddr(door, asked string) string {
	host, port, err := net.SplitHostPort(asked)
	if err != nil || port != "0" {
		return asked
	}
	b, err := os.ReadFile(d.addrFile(door))
	if last, _, splitErr := net.SplitHostPort(string(b)); err != nil || splitErr != nil || last != host {
		return asked
	}
	return string(b)
}

func (d *demo) keepAddrs() error {
	for door, addr := range map[string]string{"http": strings.TrimPrefix(d.manager.URL(), "https://"), "mqtt": d.manager.MQTTAddr()} {
		if err := os.WriteFile(d.addrFile(door), []byte(addr), 0o600); err != nil {
			return fmt.Errorf("keep the addresses for the next start: %w", err)
		}
	}
	return nil
}

func (d *demo) addrFile(door string) string { return filepath.Join(d.opts.data, door+"-address") }

func (d *demo) agent(h *vcsim.Host) (*agent.Agent, error) {
	log := d.log.With("host", h.Name())
	driver, err := esxi.New(esxi.Config{
		URL: h.URL(), Username: h.Username(), Password: esxi.Secret(h.Password()), Thumbprint: h.Thumbprint(), Log: log,
	})
	if err != nil {
		return nil, err
	}
	return agent.New(agent.Config{
		Dir: filepath.Join(d.opts.data, "agents", h.Name()), Join: d.join, Driver: driver, Version: version.String(), Log: log,
	})
}

// joinString issues a join token that lets in every host of this demo and a
// few more, for those who want to add their own.
func (d *demo) joinString(ctx context.Context) (string, error) {
	r, err := d.api.CreateJoinTokenWithResponse(ctx, nil, client.CreateJoinTokenJSONRequestBody{
		Name: new("demo"), MaxUses: new(int64(d.opts.hosts) + 10), Ttl: new(int64(24 * 60 * 60)),
		Approve: new(client.CreateJoinTokenApproveAuto), Labels: &map[string]string{"demo": "true"},
	})
	if err != nil {
		return "", fmt.Errorf("create a join token: %w", err)
	}
	if r.JSON201 == nil {
		return "", fmt.Errorf("create a join token: %s", r.Status())
	}
	return r.JSON201.Join, nil
}

func (d *demo) greet(w io.Writer, took time.Duration) {
	p := d.ports()
	fmt.Fprintf(w, `Pallas is ready after %v: a device manager and %d simulated ESXi hosts.

  API          %s/api/v1
  API docs     %s/docs
  CA file      %s
  admin token  %s
  devices at   %s (MQTT over mutual TLS)
  join string  %s

Try, in another terminal:

  go run ./cmd/pallas login --server %s --ca-file %s --token-file %s
  go run ./cmd/pallas get vms
  go run ./cmd/pallas watch events

Ctrl-C stops everything%s.
`, took.Round(10*time.Millisecond), len(d.hosts), p.URL, p.URL, p.CAFile, p.AdminToken, p.MQTTAddr, p.Join, p.URL, p.CAFile, filepath.Join(p.DataDir, tokenFile), d.keeps())
}

func (d *demo) keeps() string {
	if strings.HasPrefix(filepath.Base(d.opts.data), "pallas-demo-") {
		return " and removes its data"
	}
	return "; the data stays in " + d.opts.data
}

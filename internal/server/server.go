package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"pallas/commands"
	"pallas/commands/accesshttp"
	"pallas/commands/commandhttp"
	"pallas/commands/reactors"
	"pallas/events"
	"pallas/events/jsstore"
	"pallas/internal/auth"
	"pallas/internal/config"
	"pallas/internal/httpapi"
	"pallas/internal/version"
	"pallas/mqttgw"
	"pallas/mqttgw/enroll"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/renewal"
	"pallas/mqttgw/wire"
	"pallas/projections"
	"pallas/projections/queryhttp"
)

// maxLag is how many decisions the read model may be behind for /readyz.
const maxLag = 10_000

// shutdownTimeout is how long requests under way may take to end.
const shutdownTimeout = 5 * time.Second

// Server is a device manager.
type Server struct {
	cfg   Config
	log   *slog.Logger
	now   func() time.Time
	disk  httpapi.Check // that there is room for writes
	ready chan struct{}

	// What follows is set by Run before ready is closed.
	ca       *pki.Authority
	httpURL  string
	mqttAddr string
	store    *jsstore.Store
	creds    *auth.Credentials
	access   *accesshttp.Handlers
	commands *commands.Dispatcher
	db       *projections.DB
	usage    *projections.Usage
}

// Option changes a server for tests.
type Option func(*Server)

// WithClock has a server go by another clock than the system's. The broker's
// own timers stay with the system's.
func WithClock(now func() time.Time) Option { return func(s *Server) { s.now = now } }

// New checks the configuration. It touches nothing.
func New(cfg Config, log *slog.Logger, options ...Option) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: log, now: time.Now, disk: httpapi.DiskCheck(cfg.DataDir, uint64(cfg.Events.MinFree)), ready: make(chan struct{})}
	for _, o := range options {
		o(s)
	}
	return s, nil
}

// Ready is closed when the API and the device door answer.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// URL is how the API is reached, MQTTAddr where devices connect. They are
// valid once Ready is closed.
func (s *Server) URL() string { return s.httpURL }

// MQTTAddr is the host:port that devices are told to connect to.
func (s *Server) MQTTAddr() string { return s.mqttAddr }

// Run serves until ctx ends, which is no error. On its way out it finishes the
// requests under way, and closes everything that it opened.
func (s *Server) Run(ctx context.Context) error {
	unlock, err := lock(s.cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	oidc, err := s.cfg.OIDC.provider()
	if err != nil {
		return err
	}
	if s.ca, err = pki.Open(pkiDir(s.cfg)); err != nil {
		return fmt.Errorf("load the CA: %w", err)
	}
	// The ports come first: a busy one is the commonest mistake, and nothing
	// has happened yet.
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.HTTP.Listen)
	if err != nil {
		return fmt.Errorf("http.listen: %w", err)
	}
	defer func() { _ = listener.Close() }() // by the HTTP server as well
	// It must not be open before the broker's port: all devices that come back
	// would choose it. A port that was picked just now nobody knows.
	_, port, err := net.SplitHostPort(s.cfg.HTTP.Listen)
	if err != nil {
		return fmt.Errorf("http.listen: %w", err)
	}
	if port != "0" {
		_ = listener.Close()
	}
	var debug net.Listener
	if s.cfg.Debug.Listen != "" {
		if debug, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Debug.Listen); err != nil {
			return fmt.Errorf("debug.listen: %w", err)
		}
		defer debug.Close() //nolint:errcheck // closed by its HTTP server as well
		s.log.Info("profiles are served", "url", "http://"+debug.Addr().String()+"/debug/pprof/")
	}
	if s.httpURL, err = s.publicURL(listener.Addr()); err != nil {
		return err
	}
	certificates, err := s.certificates()
	if err != nil {
		return err
	}

	broker, err := mqttgw.NewBroker(mqttgw.BrokerConfig{
		Dir: brokerDir(s.cfg), MQTT: s.cfg.MQTT.Listen, Sync: time.Duration(s.cfg.Events.Sync), Log: s.log,
		TicketKeys: filepath.Join(pkiDir(s.cfg), "tickets.key"),
		TLS:        &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certificates.GetCertificate, Time: s.now},
		ClientCAs:  s.ca.Pool,
	})
	if err != nil {
		return err
	}
	if err := broker.Start(ctx); err != nil {
		return err
	}
	defer broker.Shutdown()
	if s.mqttAddr, err = s.publicMQTT(broker.MQTTAddr()); err != nil {
		return err
	}
	s.log.Info("memory limit", "bytes", setMemoryLimit(s.cfg.Memory))
	if port != "0" {
		again, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.HTTP.Listen)
		if err != nil {
			return fmt.Errorf("http.listen: %w", err)
		}
		listener = again
	}
	web, passMQTT := listener, func(context.Context) error { return nil }
	if s.cfg.HTTP.MQTT {
		shared := broker.Share(listener)
		web, passMQTT = shared, shared.Run
	}
	conn, err := broker.Conn("manager")
	if err != nil {
		return err
	}
	defer conn.Close()
	if s.store, err = jsstore.Open(ctx, jsstore.Config{Conn: conn, MaxBytes: s.cfg.Events.MaxBytes, Room: s.room, MustExist: true, Log: s.log}); errors.Is(err, events.ErrNoSpace) {
		return fmt.Errorf("events.max_bytes: %d is more than three quarters of what is free on the disk: lower it, or set 0", s.cfg.Events.MaxBytes)
	} else if err != nil {
		return err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("connect to the store: %w", err)
	}
	if s.creds, err = auth.Open(ctx, js, 1, s.room); err != nil {
		return err
	}

	people, err := auth.OpenPeople(ctx, js, 1, s.room, s.now)
	if err != nil {
		return err
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	snapshots, err := jsstore.OpenSnapshots(ctx, conn, 1)
	if err != nil {
		return err
	}
	if s.commands, err = commands.New(commands.Config{Store: s.store, Snapshots: snapshots, Log: s.log, Now: s.now, Registerer: registry}); err != nil {
		return err
	}
	if s.access, err = accesshttp.New(accesshttp.Config{
		Commands: s.commands, People: people, URL: s.httpURL, Now: s.now, Log: s.log,
		SessionIdle: time.Duration(s.cfg.HTTP.SessionIdle), SessionLife: time.Duration(s.cfg.HTTP.SessionLife), OIDC: oidc,
	}); err != nil {
		return err
	}
	local, err := listenLocal(ctx, s.cfg.DataDir)
	if err != nil {
		return err
	}
	defer local.Close() //nolint:errcheck // closed by its HTTP server as well
	if s.db, err = projections.Open(ctx, projections.Config{
		Path: filepath.Join(s.cfg.DataDir, "readmodel.db"), Log: s.log, Registerer: registry,
	}); err != nil {
		return err
	}
	defer s.db.Close() //nolint:errcheck // disposable, and at the end
	// After a power cut the log may be shorter than what was made of it, and the
	// reactors go on from where the read model says it is.
	if err := s.db.MatchLog(ctx, s.store); err != nil {
		s.log.Warn("read model not compared with the log", "error", err)
	}
	measured, err := jsstore.OpenTelemetry(ctx, jsstore.TelemetryConfig{
		Conn: conn, MaxAge: time.Duration(s.cfg.Telemetry.Days) * 24 * time.Hour, MaxBytes: s.cfg.Telemetry.MaxBytes,
		Room: func() error {
			_, err := httpapi.DiskCheck(s.cfg.DataDir, s.cfg.telemetryReserve()).Run(context.Background())
			return err
		},
	})
	if err != nil {
		return err
	}
	if s.usage, err = projections.OpenUsage(ctx, projections.UsageConfig{
		Path: filepath.Join(s.cfg.DataDir, "telemetry.db"), Keep: s.cfg.Telemetry.Days, Log: s.log, Now: s.now, Registerer: registry,
	}); err != nil {
		return err
	}
	defer s.usage.Close() //nolint:errcheck // at the end

	presence := reactors.NewPresence(reactors.PresenceConfig{
		Commands: s.commands, Log: s.log, Now: s.now, Grace: time.Duration(s.cfg.Devices.Grace), StartGrace: s.cfg.Devices.startGrace(),
	})
	renewals, err := renewal.New(renewal.Config{
		Commands: s.commands, Authority: s.ca, Life: time.Duration(s.cfg.Devices.CertificateLife),
		Grace: time.Duration(s.cfg.Devices.CertificateGrace), Now: s.now, Registerer: registry,
	})
	if err != nil {
		return err
	}
	registry.MustRegister(s.db.ExpiryCollector(s.now), authorityCollector{s.ca})
	gateway, err := mqttgw.New(mqttgw.Config{
		Renewals: renewals, Authority: s.ca, Broker: broker, Commands: s.commands, Presence: presence, Log: s.log, Now: s.now, Registerer: registry,
		Usage: measured, UsageInterval: time.Duration(s.cfg.Telemetry.Interval),
		ReceiptDelay: receiptDelay(time.Duration(s.cfg.Events.Sync)),
		Settings: wire.Settings{
			Window: s.cfg.Devices.Window, KeepAlive: seconds(s.cfg.Devices.KeepAlive),
			Reconcile: seconds(s.cfg.Devices.Reconcile), Resend: resend(time.Duration(s.cfg.Events.Sync)), Deflate: true,
		},
	})
	if err != nil {
		return err
	}
	reactor, err := reactors.New(reactors.Config{
		Store: s.store, Commands: s.commands, Door: gateway, ReadModel: readModel{s.db}, Presence: presence, Log: s.log, Now: s.now,
	})
	if err != nil {
		return err
	}
	handler, err := s.api(registry, renewals)
	if err != nil {
		return err
	}

	// What runs outlives ctx by the time it takes to end what is under way.
	quit := ctx.Done()
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	drained := make(chan struct{})
	g.Go(func() error {
		defer close(drained)
		select {
		case <-quit:
			s.log.Info("device manager stops: the door is closed")
			gateway.Drain(ctx)
		case <-ctx.Done():
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-broker.Failed():
			return fmt.Errorf("%w; ending, so that the next start takes up what the disk holds", broker.Err())
		case <-ctx.Done():
			return nil
		}
	})
	g.Go(func() error { return s.project(ctx) })
	g.Go(func() error { return s.usage.Run(ctx, measured) })
	g.Go(func() error { return gateway.Run(ctx) })
	g.Go(func() error { return reactor.Run(ctx) })
	g.Go(func() error { return passMQTT(ctx) })
	g.Go(func() error {
		s.followAuthority(ctx, gateway.TrustChanged)
		return nil
	})
	g.Go(func() error {
		tendMemory(ctx, broker.Accepted)
		return nil
	})
	g.Go(func() error { return serveDebug(ctx, debug) })
	g.Go(func() error { return s.access.Run(ctx) })
	g.Go(func() error { return serveLocal(ctx, local, admins{s.commands, people, s.access}) })
	g.Go(func() error {
		if err := s.serveHTTP(ctx, quit, web, certificates, handler); err != nil {
			return err
		}
		<-drained
		stop()
		return nil
	})
	close(s.ready)
	s.log.Info("device manager is ready", "version", version.String(), "url", s.httpURL, "mqtt", s.mqttAddr)
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	s.log.Info("device manager stopped")
	return nil
}

// project keeps the read model. An event that it cannot read stops it, but not
// the manager: devices and writes go on, reads show what there was, and /readyz
// says where it stopped.
func (s *Server) project(ctx context.Context) error {
	err := s.db.Run(ctx, s.store)
	if errors.Is(err, projections.ErrStopped) {
		s.log.Error("read model stopped", "error", err)
		<-ctx.Done()
		return nil
	}
	return err
}

// room says whether the disk has room for writes. It stops them while there is
// enough left for what is under way: the store does not survive a full disk.
func (s *Server) room() error {
	_, err := s.disk.Run(context.Background())
	return err
}

func (s *Server) api(registry *prometheus.Registry, renewals *renewal.Service) (http.Handler, error) {
	read, err := queryhttp.New(queryhttp.Config{DB: s.db, Store: s.store, Usage: s.usage, LogBytes: s.store.Bytes, Version: version.String()})
	if err != nil {
		return nil, err
	}
	write, err := commandhttp.New(commandhttp.Config{
		Commands: s.commands, Tokens: s.creds, Join: s.joinString, TaskDevice: read.TaskDevice, Select: read.SelectDevices,
	})
	if err != nil {
		return nil, err
	}
	return httpapi.New(httpapi.Config{
		Auth: s.access, Denied: s.access.Denied, Log: s.log, Now: s.now, Gatherer: registry, Registerer: registry,
		Limits: httpapi.Limits{Rate: s.cfg.HTTP.Rate},
		Checks: []httpapi.Check{read.LogCheck(), read.Check(maxLag), s.disk},
		Register: []httpapi.Register{write.Register, read.Register, s.access.Register, func(api huma.API) {
			enroll.Register(api, enroll.Config{
				Commands: s.commands, CA: s.ca, Renewals: renewals, Tokens: s.creds, MQTT: s.MQTTAddr, Life: time.Duration(s.cfg.Devices.CertificateLife),
				Log: s.log, Now: s.now, Registerer: registry,
			})
		}},
	})
}

// serveHTTP serves until quit is closed or ctx is done. After quit it takes no
// more requests; those that change something are answered, and those that only
// read, which may be streams without an end, are cut short.
func (s *Server) serveHTTP(ctx context.Context, quit <-chan struct{}, l net.Listener, certificates *pki.ServerSource, h http.Handler) error {
	reading, cut := context.WithCancel(ctx)
	defer cut()
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				defer context.AfterFunc(reading, cancel)()
				r = r.WithContext(ctx)
			}
			h.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certificates.GetCertificate},
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	done := make(chan error, 1)
	go func() {
		select {
		case <-quit:
		case <-ctx.Done():
		}
		cut()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		done <- srv.Shutdown(grace)
	}()
	if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	if err := <-done; err != nil {
		_ = srv.Close()
	}
	return nil
}

// certificates issues the server certificate for every name that the manager
// goes by. A listener on all addresses goes by the names of this machine.
func (s *Server) certificates() (*pki.ServerSource, error) {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	add := func(hostport string) {
		h, _, err := net.SplitHostPort(hostport)
		if err == nil && h != "" && h != "::" && h != "0.0.0.0" {
			hosts = append(hosts, h)
		}
	}
	if u, err := url.Parse(s.httpURL); err == nil {
		hosts = append(hosts, u.Hostname())
	}
	add(s.cfg.HTTP.Listen)
	add(s.cfg.MQTT.Listen)
	add(s.cfg.MQTT.Address)
	c, err := pki.NewServerSource(pki.ServerConfig{Authority: s.ca, Hosts: hosts, Now: s.now})
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	return c, nil
}

func (s *Server) publicURL(a net.Addr) (string, error) {
	if s.cfg.HTTP.URL != "" {
		return strings.TrimSuffix(s.cfg.HTTP.URL, "/"), nil
	}
	hostport, err := reachable(a.String(), "")
	return "https://" + hostport, err
}

func (s *Server) publicMQTT(addr string) (string, error) {
	if s.cfg.MQTT.Address != "" {
		return s.cfg.MQTT.Address, nil
	}
	u, err := url.Parse(s.httpURL)
	if err != nil {
		return "", fmt.Errorf("http.url: %w", err)
	}
	if s.cfg.HTTP.URL == "" {
		return reachable(addr, "")
	}
	return reachable(addr, u.Hostname())
}

// reachable puts a name in place of the host of a listening address: the given
// one, or this machine's if it listens everywhere.
func reachable(addr, host string) (string, error) {
	h, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("listening address: %w", err)
	}
	if host == "" {
		host = h
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		if host, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("this machine's name: %w; set http.url", err)
		}
	}
	return net.JoinHostPort(host, port), nil
}

// receiptDelay is how old an append must be before its receipt may go out: the
// sync interval, and as much again for the sync itself.
func receiptDelay(sync time.Duration) time.Duration { return 2 * sync }

// resend is after how many milliseconds a device sends a report again: when its
// receipt should have come.
func resend(sync time.Duration) int {
	return int((5*time.Second + receiptDelay(sync)) / time.Millisecond)
}

func seconds(d config.Duration) int { return int(time.Duration(d) / time.Second) }

func (s *Server) joinString(token string, expires time.Time) (string, error) {
	return wire.Join{URL: s.httpURL, CA: s.ca.State().Active().Fingerprint(), Token: token, Expires: expires}.String(), nil
}

// readModel gives the reactors what they need to know at their start.
type readModel struct{ db *projections.DB }

func (r readModel) OpenTasks(ctx context.Context) ([]reactors.OpenTask, uint64, error) {
	list, position, err := r.db.OpenTasks(ctx)
	tasks := make([]reactors.OpenTask, len(list))
	for i, t := range list {
		tasks[i] = reactors.OpenTask{Device: t.Device, Task: commands.Task{ID: t.ID, Kind: t.Kind, VM: t.VM, Status: t.Status, Deadline: t.Deadline}}
	}
	return tasks, position, err
}

func (r readModel) ConnectedDevices(ctx context.Context) ([]events.DeviceID, error) {
	return r.db.ConnectedDevices(ctx)
}

package enroll_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/enroll"
)

// named issues a join token with a name pattern.
func (m *manager) named(uses int, pattern string) string {
	m.t.Helper()
	id := events.TokenID(events.NewID())
	secret, err := m.creds.CreateJoin(m.t.Context(), id)
	if err != nil {
		m.t.Fatal(err)
	}
	m.do(commands.IssueJoinToken{Token: id, MaxUses: uses, Expires: m.clock.now().Add(time.Hour), AutoApprove: true, NamePattern: pattern})
	return string(id) + "." + secret
}

func (m *manager) nameOf(id string) string {
	m.t.Helper()
	d, err := m.commands.Device(m.t.Context(), events.DeviceID(id))
	if err != nil {
		m.t.Fatal(err)
	}
	return d.Name
}

// The token names its devices, each by the use that it took, however many come
// at once and however often they ask.
func TestNamePattern(t *testing.T) {
	m := startManager(t)
	token := m.named(12, "shop-{n}")
	devices := make([]device, 12)
	var wg sync.WaitGroup
	for i := range devices {
		devices[i] = newDevice(t)
		wg.Go(func() {
			if a := m.post(devices[i].request(t, token)); a.status != http.StatusOK {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	var got, expected []string
	for i, d := range devices {
		got, expected = append(got, m.nameOf(d.id)), append(expected, fmt.Sprintf("shop-%02d", i+1))
	}
	slices.Sort(got)
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	before := m.nameOf(devices[0].id)
	if a := m.post(devices[0].request(t, token)); a.status != http.StatusOK || m.nameOf(devices[0].id) != before {
		t.Errorf("a repeat: %d, name %q, want %q", a.status, m.nameOf(devices[0].id), before)
	}

	d := newDevice(t)
	if a := m.post(d.request(t, m.named(1, "{host} ({id8})"))); a.status != http.StatusOK || m.nameOf(d.id) != "esx-1 ("+d.id[:8]+")" {
		t.Errorf("%d %s, name %q", a.status, a.body, m.nameOf(d.id))
	}
	d = newDevice(t)
	req := d.request(t, m.named(1, "{host}!"))
	req.Name = ""
	if a := m.post(req); a.status != http.StatusOK || m.nameOf(d.id) != d.id+"!" {
		t.Errorf("without a host: %d %s, name %q", a.status, a.body, m.nameOf(d.id))
	}
}

// refusals lists what is recorded of refused attempts, by aggregate.
func (m *manager) refusals() map[events.Subject][]events.JoinRefused {
	m.t.Helper()
	out := map[events.Subject][]events.JoinRefused{}
	for r, err := range m.store.Read(m.t.Context(), events.Filter{}) {
		if err != nil {
			m.t.Fatal(err)
		}
		for _, e := range r.Entries {
			if j, ok := e.Event.(events.JoinRefused); ok {
				out[r.Subject] = append(out[r.Subject], j)
				if r.Actor != "system:enrolment" || r.Source != "127.0.0.1" {
					m.t.Errorf("decided by %s from %q", r.Actor, r.Source)
				}
			}
		}
	}
	return out
}

// Guessing leaves one event an hour, in an aggregate that the guesser cannot
// choose, and without what was guessed.
func TestGuessingLeavesAnEvent(t *testing.T) {
	m := startManager(t, func(c *enroll.Config) {
		c.Limits = enroll.Limits{SourceRate: 1, SourceBurst: 30, FailureBurst: 1000}
	})
	id, _ := m.token(5, true, 24*time.Hour)
	guess := func(token string) {
		t.Helper()
		if a := m.post(newDevice(t).request(t, token)); a.status != http.StatusUnauthorized {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	unknown := func() string { return events.NewID() + "." + strings.Repeat("guess", 5) }
	none, real := events.TokenSubject(events.NoToken), events.TokenSubject(id)
	for range 3 { // the third leaves the source no attempt
		guess(unknown())
	}
	want := map[events.Subject][]events.JoinRefused{none: {{Failures: 3, Limit: "source"}}}
	if diff := cmp.Diff(want, m.refusals()); diff != "" {
		t.Fatalf("events (-want +got):\n%s", diff)
	}
	for range 5 { // limited, and not even looked at
		if a := m.post(newDevice(t).request(t, unknown())); a.status != http.StatusTooManyRequests {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	m.clock.advance(30 * time.Minute)
	for range 3 { // within the hour
		guess(unknown())
	}
	if diff := cmp.Diff(want, m.refusals()); diff != "" {
		t.Fatalf("within the hour (-want +got):\n%s", diff)
	}
	m.clock.advance(30 * time.Minute)
	for range 3 {
		guess(string(id) + ".guess")
	}
	want[real] = []events.JoinRefused{{Failures: 6, Limit: "source"}}
	if diff := cmp.Diff(want, m.refusals()); diff != "" {
		t.Fatalf("an hour later (-want +got):\n%s", diff)
	}
	// Nothing is a token now that was none.
	if _, err := m.commands.JoinToken(t.Context(), events.NoToken); commands.KindOf(err) != commands.KindNotFound {
		t.Errorf("the token that is none: %v", err)
	}
	m.clock.advance(time.Minute)
	guess(string(events.NoToken) + ".guess")
}

// Attempts of many sources together are too many as well.
func TestGuessingOfAllLeavesAnEvent(t *testing.T) {
	m := startManager(t, func(c *enroll.Config) {
		c.Limits = enroll.Limits{SourceBurst: 10_000, FailureRate: 1, FailureBurst: 4}
	})
	for range 4 {
		m.post(newDevice(t).request(t, events.NewID()+".guess"))
	}
	want := map[events.Subject][]events.JoinRefused{events.TokenSubject(events.NoToken): {{Failures: 4, Limit: "all"}}}
	if diff := cmp.Diff(want, m.refusals()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// What is wrong with a request otherwise is no guess.
func TestMistakesLeaveNoEvent(t *testing.T) {
	m := startManager(t, func(c *enroll.Config) {
		c.Limits = enroll.Limits{SourceRate: 1, SourceBurst: 30}
	})
	_, token := m.token(1, true, time.Hour)
	for range 3 {
		req := newDevice(t).request(t, token)
		req.CSR = "csr"
		m.post(req)
	}
	if got := m.refusals(); len(got) != 0 {
		t.Errorf("events %v", got)
	}
}

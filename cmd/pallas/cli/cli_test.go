package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pallas/internal/client"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestAge(t *testing.T) {
	for ago, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m",
		2 * time.Hour: "2h", 47 * time.Hour: "47h", 48 * time.Hour: "2d", 1000 * 24 * time.Hour: "1000d",
	} {
		if got := age(new(noon.Add(-ago)), noon); got != want {
			t.Errorf("%v: got %s, want %s", ago, got, want)
		}
	}
	if got := age(nil, noon); got != "-" {
		t.Errorf("never: got %s", got)
	}
	if got := when(new(noon.Add(time.Hour)), noon); got != "2026-11-23T13:00:00Z (in 60m)" {
		t.Errorf("in an hour: got %s", got)
	}
}

func TestSize(t *testing.T) {
	for mib, want := range map[int64]string{0: "0 MiB", 1023: "1023 MiB", 1024: "1.0 GiB", 1 << 20: "1.0 TiB", 1907348: "1.8 TiB"} {
		if got := size(mib); got != want {
			t.Errorf("%d: got %s, want %s", mib, got, want)
		}
	}
}

func TestInstant(t *testing.T) {
	for in, want := range map[string]time.Time{
		"2026-11-23T09:30:00Z": noon.Add(-150 * time.Minute), "2026-11-23T10:30:00+01:00": noon.Add(-150 * time.Minute), "2026-11-23": noon.Add(-12 * time.Hour),
		"10m": noon.Add(-10 * time.Minute), "1h30m": noon.Add(-90 * time.Minute), "7d": noon.AddDate(0, 0, -7), "0s": noon,
	} {
		if got, err := instant("since", in, noon, -1); err != nil || !got.Equal(want) {
			t.Errorf("%s: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"yesterday", "-5m", "1.5d", "-1d", "99999d", "d", "2026-13-01", "10"} {
		_, err := instant("since", in, noon, -1)
		if asError(err).Code != exitUsage {
			t.Errorf("%s: got %v, want a usage error", in, err)
		}
	}
	if got, err := instant("since", "", noon, -1); got != nil || err != nil {
		t.Errorf("nothing: got %v, %v", got, err)
	}
}

func TestLabels(t *testing.T) {
	got, err := labels([]string{"a=b", "c=", "d=e=f", "g-", "h=i-"}, true)
	if diff := cmp.Diff(map[string]*string{"a": new("b"), "c": new(""), "d": new("e=f"), "g": nil, "h": new("i-")}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for _, bad := range []string{"a", "", "=b", "-"} {
		if _, err := labels([]string{bad}, true); asError(err).Code != exitUsage {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	if _, err := labels([]string{"a-"}, false); err == nil {
		t.Error("a removal where nothing can be removed")
	}
}

// TestHarmless: whatever the text, no format lets a control character through.
func TestHarmless(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.SampledFrom([]rune("a\\u001b\x1b\x00\u009b\u202e\u2066\r\n\t\"\x7f'")))).Draw(t, "text")
		v := map[string]string{"name": text}
		j, err := encode(v, "  ")
		if err != nil {
			t.Fatal(err)
		}
		y, err := encodeYAML([]any{v})
		if err != nil {
			t.Fatal(err)
		}
		for format, out := range map[string]string{"clean": clean(text), "json": string(j), "yaml": string(y)} {
			if i := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && hostile(r) }); i >= 0 {
				t.Errorf("%s: %q", format, out)
			}
		}
		var back []map[string]string
		if err := yaml.Unmarshal(y, &back); err != nil || len(back) != 1 || strings.Join(strings.Fields(back[0]["name"]), " ") != strings.Join(strings.Fields(clean(strings.ReplaceAll(text, "\r", ""))), " ") {
			t.Errorf("yaml %q is %v, %v", y, back, err)
		}
		if strings.Contains(clean(text), "\n") {
			t.Errorf("two lines: %q", clean(text))
		}
	})
}

func TestPick(t *testing.T) {
	type thing struct{ id, name string }
	all := []thing{{"6f1c2e8a-0001", "shop"}, {"6f1c2e8a-0002", "6f1c2e8a-0001"}, {"6f1c0000-0003", "twin"}, {"77777777-0004", "twin"}, {"abcd", "x"}}
	for _, tc := range []struct {
		arg, want string
		code      int
	}{
		{arg: "shop", want: "6f1c2e8a-0001"},
		{arg: "6f1c2e8a-0001", want: "6f1c2e8a-0001"}, // an id goes before a name
		{arg: "7777", want: "77777777-0004"},
		{arg: "ABCD", want: "abcd"},
		{arg: "777", code: exitNotFound},
		{arg: "sho", code: exitNotFound},
		{arg: "twin", code: exitUsage},
		{arg: "6f1c", code: exitUsage},
	} {
		got, err := pick("thing", tc.arg, all, func(t thing) (string, string) { return t.id, t.name })
		if tc.code == 0 {
			if err != nil || got.id != tc.want {
				t.Errorf("%s: got %v, %v, want %s", tc.arg, got, err, tc.want)
			}
			continue
		}
		e := asError(err)
		if e.Code != tc.code {
			t.Errorf("%s: got %v with code %d, want %d", tc.arg, err, e.Code, tc.code)
		}
		if tc.code == exitUsage && len(e.Fields) < 2 {
			t.Errorf("%s: the candidates are missing: %+v", tc.arg, e)
		}
	}
}

func TestPages(t *testing.T) {
	// As the event history does: short and empty pages before the end.
	answers := map[string][]int{"": {1, 2}, "a": {}, "b": {3}, "c": {4, 5, 6}}
	next := map[string]string{"": "a", "a": "b", "b": "c"}
	var sizes []int64
	fetch := func(_ context.Context, _ *session, p page) ([]int, *string, error) {
		sizes = append(sizes, *p.limit)
		at := str(p.cursor)
		return answers[at][:min(int(*p.limit), len(answers[at]))], one[string](next[at]), nil
	}
	for limit, want := range map[int][]int{0: {1, 2, 3, 4, 5, 6}, 1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {1, 2, 3, 4}, 5000: {1, 2, 3, 4, 5, 6}} {
		sizes = nil
		got, err := all(t.Context(), nil, fetch, limit)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("limit %d: %v %s", limit, err, diff)
		}
		for _, s := range sizes {
			if s < 1 || s > pageSize {
				t.Errorf("limit %d: a page of %d", limit, s)
			}
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	tab := &table{w: &b, color: true, heads: []string{"NAME", "STATE"}}
	tab.add(cell{text: "a"}, cell{"lost", true})
	tab.add(cell{text: "größer"}, cell{"lost", false})
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	tab.add(cell{text: "b\x1b"}, cell{"ok", true}) // later rows keep the columns
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	want := "NAME     STATE\na        \x1b[31mlost\x1b[0m\ngrößer   lost\nb        \x1b[32mok\x1b[0m\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestProblem(t *testing.T) {
	for status, want := range map[int]int{
		400: exitUsage, 401: exitDenied, 403: exitRefused, 404: exitNotFound, 408: exitUnreachable, 409: exitRefused, 412: exitRefused,
		413: exitError, 422: exitUsage, 429: exitUnreachable, 500: exitError, 502: exitUnreachable, 503: exitUnreachable, 507: exitError,
	} {
		if got := problem(status, []byte("<html>")); got.Code != want || got.Error() == "" {
			t.Errorf("%d: got %v with code %d, want %d", status, got, got.Code, want)
		}
	}
	var b bytes.Buffer
	problem(500, []byte(`{"title":"Something went wrong","detail":"de\u001b[2Jtail","status":500,"requestId":"r-1","type":"x"}`)).write(&b)
	if diff := cmp.Diff("error: Something went wrong: de[2Jtail\n  request id: r-1\n", b.String()); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	problem(422, []byte(`{"title":"The request is not valid","detail":"two fields","status":422,"type":"x","errors":[{"field":"a","message":"m"},{"field":"b","message":"n"}]}`)).write(&b)
	if diff := cmp.Diff("error: The request is not valid: two fields\n  a: m\n  b: n\n", b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestUnanswered(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code int
		hint string
	}{
		{&url.Error{Op: "Get", Err: fmt.Errorf("dial: %w", syscall.ECONNREFUSED)}, exitUnreachable, "pallasd runs"},
		{&url.Error{Op: "Get", Err: context.DeadlineExceeded}, exitUnreachable, "--timeout"},
		{context.Canceled, exitInterrupted, ""},
		{errors.New("unexpected end of JSON input"), exitError, ""},
	} {
		if got := asError(unanswered("https://x", tc.err)); got.Code != tc.code || !strings.Contains(got.Hint, tc.hint) {
			t.Errorf("%v: got %+v", tc.err, got)
		}
	}
}

func TestPayload(t *testing.T) {
	raw := []byte{0xa1, 0x00, 0x01, 0xfb, 0xff, 0xfe}
	for _, in := range []string{
		"a10001fbfffe", "0xa10001fbfffe", "A1 00 01 FB\nFF FE\n",
		base64.StdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw) + "\n", string(raw),
	} {
		if got := payload([]byte(in)); !bytes.Equal(got, raw) {
			t.Errorf("%q: got %x", in, got)
		}
	}
}

func TestSummary(t *testing.T) {
	got := summary(map[string]any{"task": "t", "n": float64(12345678), "vm": map[string]any{"name": "web", "id": "1"}, "labels": map[string]any{"a": "b"}, "list": []any{1, 2}, "none": nil})
	if diff := cmp.Diff("labels={a=b} list=[2] n=12345678 task=t vm=web", got); diff != "" {
		t.Error(diff)
	}
}

func TestSecret(t *testing.T) {
	s := secret("hunter2")
	if out := fmt.Sprintf("%v %s %+v %#v %q", s, s, profile{Token: s}, profile{Token: s}, s); strings.Contains(out, "hunter2") {
		t.Error(out)
	}
}

func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "config.yaml")
	t.Setenv("PALLAS_CONFIG", path)
	var c configFile
	c.put(profile{Name: "a", Server: "https://a", Token: "1", CA: "-----BEGIN\nCERT\n"})
	c.put(profile{Name: "b", Server: "https://b", Token: "2"})
	c.put(profile{Name: "a", Server: "https://a", Token: "3"})
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	got, err := loadConfig()
	if diff := cmp.Diff(c, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if got.Current != "a" || len(got.Contexts) != 2 || got.Contexts[0].Token != "3" {
		t.Errorf("got %+v", got)
	}
}

// TestPosition: reads after a write ask for what it wrote, and only those.
func TestPosition(t *testing.T) {
	var sent []string
	answer := "7"
	c := &client.Client{Client: doer(func(r *http.Request) (*http.Response, error) {
		sent = append(sent, r.Method+" "+r.Header.Get("Pallas-Position"))
		return &http.Response{Header: http.Header{"Pallas-Position": {answer}}}, nil
	})}
	p := new(client.Position)
	if err := p.Option(c); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ method, answer string }{{"GET", "99"}, {"POST", "7"}, {"GET", "99"}, {"DELETE", "5"}, {"GET", ""}, {"PATCH", "x"}, {"GET", ""}} {
		answer = step.answer
		r, err := http.NewRequestWithContext(t.Context(), step.method, "https://x", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Client.Do(r); err != nil { //nolint:bodyclose // there is none
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"GET ", "POST ", "GET 7", "DELETE ", "GET 7", "PATCH ", "GET 7"}, sent); diff != "" {
		t.Error(diff)
	}
}

type doer func(*http.Request) (*http.Response, error)

func (d doer) Do(r *http.Request) (*http.Response, error) { return d(r) }

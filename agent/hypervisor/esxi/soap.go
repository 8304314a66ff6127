package esxi

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

var vimTypes = types.TypeFunc()

// client calls the host's SOAP service. govmomi's own would bring a second
// protocol and its own dialling into the program, which is to stay small.
type client struct {
	url  *url.URL
	http *http.Client

	mu     sync.Mutex
	cookie *http.Cookie // of the session
}

// RoundTrip implements [soap.RoundTripper].
func (c *client) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	body, err := xml.Marshal(soap.Envelope{Body: req})
	if err != nil {
		return fmt.Errorf("encode call: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url.String(), bytes.NewReader(append([]byte(xml.Header), body...)))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", `text/xml; charset="utf-8"`)
	r.Header.Set("SOAPAction", "urn:"+vim25.Namespace+"/"+vim25.Version)
	answer, err := c.do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // read only
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusInternalServerError {
		return statusError(answer.StatusCode)
	}
	dec := xml.NewDecoder(answer.Body)
	dec.TypeFunc = vimTypes
	if err := dec.Decode(&soap.Envelope{Body: res}); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if f := res.Fault(); f != nil {
		return soap.WrapSoapFault(f)
	}
	return nil
}

// do sends a request with the session's cookie, and keeps the one it gets.
func (c *client) do(r *http.Request) (*http.Response, error) {
	r.Header.Set("User-Agent", "pallas-agent")
	c.mu.Lock()
	if c.cookie != nil {
		r.AddCookie(&http.Cookie{Name: c.cookie.Name, Value: c.cookie.Value})
	}
	c.mu.Unlock()
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	for _, k := range answer.Cookies() {
		if k.Name == soap.SessionCookieName {
			c.mu.Lock()
			c.cookie = k
			c.mu.Unlock()
		}
	}
	return answer, nil
}

// statusError is an HTTP status that the host should not answer with.
type statusError int

func (e statusError) Error() string {
	return fmt.Sprintf("the host answered %d %s", int(e), http.StatusText(int(e)))
}

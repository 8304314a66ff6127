package esxi

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

// idFile is where a device's id is kept, in the root of a datastore. It bears
// the host's UUID because a datastore may be shared. There is no folder
// around it: making one is a call that free licences refuse, uploading is not
// known to be.
const idFile = ".pallas-device-id-"

const maxIDFile = 256

// store is a datastore that files can be kept on.
type store struct {
	name   string
	shared bool
}

// stores returns the accessible datastores, the host's own first, and the name
// of the file.
func (s *session) stores(ctx context.Context) (stores []store, file string, err error) {
	err = s.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: hostRef, SelectSet: traverse("datastore")}},
		PropSet: []types.PropertySpec{
			{Type: "HostSystem", PathSet: []string{"summary.hardware"}},
			{Type: "Datastore", PathSet: []string{"name", "summary.accessible", "summary.type", "summary.multipleHostAccess"}},
		},
	}, func(o object) {
		if o.ref == hostRef {
			if id := get[types.HostHardwareSummary](o, "summary.hardware").Uuid; id != "" {
				file = idFile + strings.ToLower(id)
			}
			return
		}
		if get[bool](o, "summary.accessible") {
			stores = append(stores, store{
				name:   get[string](o, "name"),
				shared: get[string](o, "summary.type") != "VMFS" || get[bool](o, "summary.multipleHostAccess"),
			})
		}
	})
	slices.SortFunc(stores, func(a, b store) int {
		if a.shared != b.shared {
			if a.shared {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.name, b.name)
	})
	return stores, cmp.Or(file, idFile+"host"), err
}

// folder reads (body nil) or writes a file on a datastore.
func (d *Driver) folder(ctx context.Context, s *session, ds, file string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.CallTimeout)
	defer cancel()
	u := url.URL{
		Scheme: "https", Host: d.url.Host, Path: "/folder/" + file,
		RawQuery: url.Values{"dcPath": {"ha-datacenter"}, "dsName": {ds}}.Encode(),
	}
	method := http.MethodGet
	if body != nil {
		method = http.MethodPut
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := s.client.do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	out, err := io.ReadAll(io.LimitReader(res.Body, maxIDFile))
	if err == nil && res.StatusCode/100 != 2 {
		err = statusError(res.StatusCode)
	}
	return out, err
}

// LoadID implements [hypervisor.Driver].
func (d *Driver) LoadID(ctx context.Context) (string, error) {
	id := ""
	err := d.with(ctx, "read device id from a datastore", func(s *session) error {
		stores, file, err := s.stores(ctx)
		if err != nil {
			return err
		}
		var last error
		for _, ds := range stores {
			b, err := d.folder(ctx, s, ds.name, file, nil)
			if err == nil {
				id = strings.TrimSpace(string(b))
				return nil
			}
			if !errors.Is(err, statusError(http.StatusNotFound)) {
				last = fmt.Errorf("datastore %s: %w", ds.name, fileError(err))
			}
		}
		return last
	})
	return id, err
}

// SaveID implements [hypervisor.Driver]. It writes to the first datastore that
// takes the file.
func (d *Driver) SaveID(ctx context.Context, id string) error {
	return d.with(ctx, "save device id on a datastore", func(s *session) error {
		stores, file, err := s.stores(ctx)
		if err != nil {
			return err
		}
		last := error(&hypervisor.Error{Code: wire.CodeHost, Message: "the host has no accessible datastore to keep the device id on"})
		for _, ds := range stores {
			if _, err = d.folder(ctx, s, ds.name, file, []byte(id+"\n")); err == nil {
				return nil
			}
			last = fmt.Errorf("datastore %s: %w", ds.name, fileError(err))
		}
		return last
	})
}

// fileError gives the file service's refusals their meaning.
func fileError(err error) error {
	var status statusError
	if !errors.As(err, &status) {
		return err
	}
	code := wire.CodeHost
	if status == http.StatusForbidden || status == http.StatusUnauthorized {
		code = wire.CodeDenied
	}
	return &hypervisor.Error{Code: code, Message: status.Error() + "; the account needs the privileges Datastore.Browse and Datastore.FileManagement"}
}

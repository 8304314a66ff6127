package events

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// TestUpcast shows how a type gets a new meaning: DeviceRenamed as it would be
// after two changes. Version 1 had only a name, version 2 told who had chosen
// it, version 3 calls the name display name.
func TestUpcast(t *testing.T) {
	type v1 struct {
		Name string `json:"name"`
	}
	type v2 struct {
		Name   string `json:"name"`
		Chosen string `json:"chosen"`
	}
	type v3 struct {
		DisplayName string `json:"displayName"`
		Chosen      string `json:"chosen"`
	}
	c := codec{
		name: "DeviceRenamed", version: 3,
		decode: func(b json.RawMessage) (Event, error) {
			var e v3
			err := json.Unmarshal(b, &e)
			return DeviceRenamed{Name: e.DisplayName + " by " + e.Chosen}, err
		},
		upcasts: map[int]func(json.RawMessage) (json.RawMessage, error){
			1: func(b json.RawMessage) (json.RawMessage, error) {
				var old v1
				if err := json.Unmarshal(b, &old); err != nil {
					return nil, err
				}
				return json.Marshal(v2{Name: old.Name, Chosen: "unknown"})
			},
			2: func(b json.RawMessage) (json.RawMessage, error) {
				var old v2
				if err := json.Unmarshal(b, &old); err != nil {
					return nil, err
				}
				if old.Chosen == "" {
					return nil, errors.New("chosen is empty")
				}
				return json.Marshal(v3{DisplayName: old.Name, Chosen: old.Chosen})
			},
		},
	}
	for _, tc := range []struct {
		version int
		data    string
		want    string
		err     string
	}{
		{version: 1, data: `{"name":"n"}`, want: "n by unknown"},
		{version: 2, data: `{"name":"n","chosen":"device"}`, want: "n by device"},
		{version: 3, data: `{"displayName":"n","chosen":"operator"}`, want: "n by operator"},
		{version: 1, data: `{"name":7}`, err: "upcast from version 1"},
		{version: 2, data: `{"name":"n"}`, err: "upcast from version 2"},
		{version: 3, data: `{"displayName":7}`, err: "version 3"},
		{version: 0, data: `{}`, err: "no upcast from version 0"},
	} {
		e, err := c.decodeVersion(tc.version, json.RawMessage(tc.data))
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), c.name) {
				t.Errorf("version %d %s: %v, want an error with %q", tc.version, tc.data, err, tc.err)
			}
			continue
		}
		if want := (DeviceRenamed{Name: tc.want}); err != nil || e != want {
			t.Errorf("version %d: %+v, %v; want %+v", tc.version, e, err, want)
		}
	}
}

// TestUpcastsAreComplete demands an upcast from every version a type had.
func TestUpcastsAreComplete(t *testing.T) {
	for _, c := range codecs {
		for v := 1; v < c.version; v++ {
			if c.upcasts[v] == nil {
				t.Errorf("%s has version %d and no upcast from version %d", c.name, c.version, v)
			}
		}
		for v := range c.upcasts {
			if v < 1 || v >= c.version {
				t.Errorf("%s has version %d and an upcast from version %d", c.name, c.version, v)
			}
		}
	}
}

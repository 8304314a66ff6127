package projections

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/events"
)

func TestJoinTokenEvents(t *testing.T) {
	for _, tc := range []struct {
		name string
		when []events.Event
		want func(*JoinToken)
	}{
		{"issued", nil, func(*JoinToken) {}},
		{"used", []events.Event{events.JoinTokenUsed{Device: deviceA}, events.JoinTokenUsed{Device: deviceB}}, func(w *JoinToken) { w.Used = 2 }},
		{"revoked", []events.Event{events.JoinTokenRevoked{}}, func(w *JoinToken) { w.RevokedAt, w.RevokedBy = at(2), "user:ada" }},
		{"refusals", []events.Event{events.JoinRefused{Failures: 30, Limit: "source"}}, func(*JoinToken) {}},
		{"unknown type", []events.Event{unknown()}, func(*JoinToken) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLog(t)
			p := l.token(token1, events.JoinTokenIssued{
				Token: token1, Name: "Berlin", MaxUses: 3, Expires: at(100), AutoApprove: true, Labels: map[string]string{"site": "ber"}, NamePattern: "till-{n}",
			})
			for _, e := range tc.when {
				p = l.token(token1, e)
			}
			want := JoinToken{
				ID: token1, Name: "Berlin", MaxUses: 3, Expires: at(100), AutoApprove: true, Labels: map[string]string{"site": "ber"}, NamePattern: "till-{n}",
				CreatedAt: at(1), CreatedBy: "user:ada", CreatedPosition: 1, Revision: p,
			}
			tc.want(&want)
			got, err := given(t, l).JoinToken(t.Context(), everything, token1)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("token: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestTokenUses(t *testing.T) {
	l := newLog(t)
	l.token(token1, events.JoinTokenIssued{Token: token1, MaxUses: 9, Expires: at(100)})
	l.token(token2, events.JoinTokenIssued{Token: token2, MaxUses: 9, Expires: at(100)})
	l.register(deviceB, "bee")
	for _, id := range []events.DeviceID{deviceC, deviceB, deviceA} {
		l.token(token1, events.JoinTokenUsed{Device: id})
	}
	l.token(token2, events.JoinTokenUsed{Device: deviceA})
	d := given(t, l)
	want := []TokenUse{
		{Device: deviceC, At: at(4), Position: 4},
		{Device: deviceB, DeviceName: "bee", At: at(5), Position: 5},
		{Device: deviceA, At: at(6), Position: 6},
	}
	for _, limit := range []int{1, 2, 3, 4} {
		got := pages(t, func(cursor string) (Page[TokenUse], error) {
			return d.TokenUses(t.Context(), TokenUseFilter{Scope: everything, Token: token1, Window: Window{Cursor: cursor, Limit: limit}})
		}, limit)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("uses in pages of %d (-want +got):\n%s", limit, diff)
		}
	}
}

func TestJoinTokensPages(t *testing.T) {
	l := newLog(t)
	id := func(i int) events.TokenID {
		return events.TokenID(fmt.Sprintf("80000000-0000-7000-8000-%012x", 999-i))
	}
	for i := range 9 {
		issued := events.JoinTokenIssued{Token: id(i), MaxUses: 1, Expires: at(500 + i)}
		if i == 0 {
			issued.Device = deviceB
		}
		l.token(id(i), issued)
	}
	l.token(id(2), events.JoinTokenRevoked{})
	l.token(id(3), events.JoinTokenUsed{Device: deviceA})
	d := given(t, l)
	for name, tc := range map[string]struct {
		usable time.Time
		want   []int
	}{
		"all":     {time.Time{}, []int{8, 7, 6, 5, 4, 3, 2, 1, 0}},
		"usable":  {at(500), []int{8, 7, 6, 5, 4, 1}}, // 0 expires at that instant
		"later":   {at(506), []int{8, 7}},
		"too old": {at(900), nil},
	} {
		for _, limit := range []int{1, 4, 100} {
			var got []int
			for _, v := range pages(t, func(cursor string) (Page[JoinToken], error) {
				return d.JoinTokens(t.Context(), JoinTokenFilter{Scope: everything, UsableAt: tc.usable, Window: Window{Cursor: cursor, Limit: limit}})
			}, limit) {
				for i := range 9 {
					if id(i) == v.ID {
						got = append(got, i)
					}
				}
				if !tc.usable.IsZero() && !v.Usable(tc.usable) {
					t.Errorf("%s: token %s is listed and says it is not usable", name, v.ID)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s in pages of %d (-want +got):\n%s", name, limit, diff)
			}
		}
	}
	if got, err := d.JoinToken(t.Context(), everything, id(0)); err != nil || got.Device != deviceB {
		t.Errorf("token for a device: %+v, %v", got, err)
	}
	_, err := d.JoinToken(t.Context(), everything, "none")
	is(t, err, ErrNotFound)
}

package wire

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"
)

// Direction says who sent a packet.
type Direction string

// The directions. AnyDirection lets [Describe] find out: the two kinds of
// packet share their keys but not the types behind them.
const (
	AnyDirection  Direction = ""
	UpDirection   Direction = "up"
	DownDirection Direction = "down"
)

// Description is a packet for people. It marshals to JSON with the fields'
// names in the order of their keys.
type Description struct {
	Direction Direction `json:"direction"`
	Bytes     int       `json:"bytes"`
	// Inflated is the packet's size in bytes if it came deflated.
	Inflated int `json:"inflated,omitempty"`
	// Problem is why a receiver would refuse the packet, or empty.
	Problem string `json:"problem,omitempty"`
	// Unknown lists keys that this build does not know, such as
	// "reports[0].12". A receiver ignores them.
	Unknown []string `json:"unknown,omitempty"`
	Packet  any      `json:"packet"`
}

// Describe shows a payload with the names of its fields, whatever is wrong
// with it as long as it is CBOR; otherwise the error wraps ErrMalformed.
func Describe(payload []byte, d Direction) (Description, error) {
	if d == AnyDirection {
		up, err := Describe(payload, UpDirection)
		if err != nil {
			return Description{}, err
		}
		if up.Problem == "" && len(up.Unknown) == 0 {
			return up, nil
		}
		down, err := Describe(payload, DownDirection)
		if err == nil && down.doubt() < up.doubt() {
			return down, nil
		}
		return up, err
	}
	out := Description{Direction: d, Bytes: len(payload)}
	var t reflect.Type
	var problem error
	switch d {
	case UpDirection:
		t = reflect.TypeFor[Up]()
		_, problem = DecodeUp(payload)
		if !Deflated(payload) {
			break
		}
		if plain, err := inflate(payload); err == nil {
			payload, out.Inflated = plain, len(plain)
		}
	case DownDirection:
		t = reflect.TypeFor[Down]()
		_, problem = DecodeDown(payload)
	case AnyDirection:
	}
	if t == nil {
		return Description{}, fmt.Errorf("direction %q: want %q or %q", d, UpDirection, DownDirection)
	}
	if problem != nil {
		out.Problem = problem.Error()
	}
	var v any
	if err := looseMode.Unmarshal(payload, &v); err != nil {
		return Description{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	w := namer{}
	out.Packet = w.name(v, t, "")
	out.Unknown = w.unknown
	return out, nil
}

// doubt grows with what speaks against the direction.
func (d Description) doubt() int {
	n := len(d.Unknown)
	if d.Problem != "" {
		n += 1000
	}
	return n
}

// DescribeJoin shows a join string without the secret of its token.
func DescribeJoin(s string) (any, error) {
	j, err := ParseJoin(s)
	if err != nil {
		return nil, err
	}
	return object{
		{"url", j.URL},
		{"ca", hex.EncodeToString(j.CA)},
		{"token", redact(j.Token)},
		{"expires", j.Expires},
	}, nil
}

// looseMode reads what a receiver would refuse too: the point is to see it.
var looseMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{MaxNestedLevels: 32, UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// object is a JSON object that keeps its order.
type object []member

type member struct {
	name  string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		k, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		v, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(k)
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// namer turns decoded CBOR into JSON values, with the names of a Go type's
// fields where the type has them.
type namer struct{ unknown []string }

func (n *namer) name(v any, t reflect.Type, path string) any {
	if t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case map[any]any:
		return n.object(v, t, path)
	case []any:
		var elem reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			elem = t.Elem()
		}
		out := make([]any, len(v))
		for i := range v {
			out[i] = n.name(v[i], elem, path+"["+strconv.Itoa(i)+"]")
		}
		return out
	case []byte:
		if id, err := uuid.FromBytes(v); t == reflect.TypeFor[uuid.UUID]() && err == nil {
			return id.String()
		}
		return hex.EncodeToString(v)
	case float64:
		if at, err := instant(v); t == reflect.TypeFor[time.Time]() && err == nil {
			return at
		}
		return number(v)
	case uint64:
		if at, err := instant(float64(v)); t == reflect.TypeFor[time.Time]() && err == nil {
			return at
		}
		return v
	case nil, bool, string, int64:
		return v
	default: // tags, big numbers and simple values: nothing that the protocol has
		return fmt.Sprint(v)
	}
}

func (n *namer) object(m map[any]any, t reflect.Type, path string) object {
	names := map[string]reflect.StructField{}
	if t != nil && t.Kind() == reflect.Struct {
		for f := range t.Fields() {
			key, _, _ := strings.Cut(f.Tag.Get("cbor"), ",")
			names[key] = f
		}
	}
	keys := make([]any, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b any) int {
		x, xOK := a.(uint64)
		y, yOK := b.(uint64)
		if xOK && yOK {
			return cmp.Compare(x, y)
		}
		return strings.Compare(fmt.Sprintf("%T %v", a, a), fmt.Sprintf("%T %v", b, b))
	})
	out := make(object, 0, len(m))
	for _, k := range keys {
		text := fmt.Sprint(k)
		f, known := names[text]
		if _, isInt := k.(uint64); !known || !isInt {
			if t != nil { // within an unknown field nothing has a name
				n.unknown = append(n.unknown, strings.TrimPrefix(path+"."+text, "."))
			}
			out = append(out, member{text, n.name(m[k], nil, path+"."+text)})
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, member{name, n.name(m[k], f.Type, strings.TrimPrefix(path+"."+name, "."))})
	}
	return out
}

// instant reads Unix seconds as the decoder does, if JSON can write them.
func instant(seconds float64) (time.Time, error) {
	if math.IsNaN(seconds) || seconds < -62135596800 || seconds > maxUnix {
		return time.Time{}, errors.New("not a date")
	}
	whole, part := math.Modf(seconds)
	return time.Unix(int64(whole), int64(part*1e9)).UTC().Round(time.Microsecond), nil
}

// number keeps what JSON has no number for.
func number(f float64) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return strconv.FormatFloat(f, 'g', -1, 64)
	}
	return f
}

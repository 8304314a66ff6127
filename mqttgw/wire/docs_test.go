package wire_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"pallas/mqttgw/wire"
)

// generated compares the part of a file after the mark with what it should be,
// and writes it there with -update.
func generated(t *testing.T, file, mark, want string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, got, ok := strings.Cut(string(b), mark)
	if !ok {
		t.Fatalf("%s: no line %q", file, mark)
	}
	if *update {
		if err := os.WriteFile(file, []byte(head+mark+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("%s is out of date, run go test ./mqttgw/wire -update (-is +should be):\n%s", file, diff)
	}
}

const (
	asyncAPIFile = "../../schema/asyncapi.yaml"
	protocolPage = "../../docs/reference/device-protocol.md"
)

// The limits and the examples of the page are those of the code and the
// goldens.
func TestProtocolPage(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, `
| limit | |
|---|---|
| one packet | %d bytes |
| a deflated packet, inflated | as any other, and %d times its own size |
| reports in an up | %d |
| tasks in a down | %d |
| a text | %d bytes of UTF-8 |
| virtual machines of a host | %d |
| disks, network cards, addresses, datastores, networks of one object; tasks in a list | %d |
| a certificate, a certificate request | %d bytes |
| CAs that a device trusts at once | %d |
| epochs and numbers | below 2^53 |
| nesting, keys of a map, elements of an array in CBOR | 8, 64, 4096 |

Each example as bytes, and in diagnostic notation (RFC 8949 §8). They are the files of
mqttgw/wire/testdata/golden, where they are with field names too.
`, wire.MaxPacket, wire.MaxInflation, wire.MaxReports, wire.MaxTasks, wire.MaxText, wire.MaxVMs, wire.MaxItems,
		wire.MaxCertificate, wire.MaxAnchors)
	for _, g := range goldens() {
		diag, err := os.ReadFile(goldenDir + "/" + g.name + ".diag")
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(goldenDir + "/" + g.name + ".hex")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "\n### %s\n\n```\n%s\n%s```\n", g.name, text, diag)
	}
	generated(t, protocolPage, "## 6. Limits and examples\n", b.String())
}

// The schemas of the AsyncAPI document follow from the CDDL, so that there is
// one place to change.
func TestAsyncAPI(t *testing.T) {
	text, err := os.ReadFile(cddlFile)
	if err != nil {
		t.Fatal(err)
	}
	part := regexp.MustCompile(`(?ms)^part = \(\n(.*?)^\)`).FindStringSubmatch(string(text))
	if part == nil {
		t.Fatal("no rule part")
	}
	var b strings.Builder
	b.WriteByte('\n')
	for _, m := range regexp.MustCompile(`(?ms)^([a-z-]+) = \{\n(.*?)^\}`).FindAllStringSubmatch(string(text), -1) {
		name, body := m[1], m[2]
		if name == "join" {
			continue // not on MQTT
		}
		fmt.Fprintf(&b, "    %s:\n      type: object\n", name)
		if name == "report" {
			b.WriteString("      description: Exactly one part beside seq and time.\n")
			body = strings.Replace(body, "? part,\n", regexp.MustCompile(`(?m)^(\s+)(// )?(\d)`).ReplaceAllString(part[1], "$1? $3"), 1)
		}
		var required []string
		fields := ""
		for line := range strings.SplitSeq(body, "\n") {
			f := asyncField.FindStringSubmatch(line)
			if f == nil {
				continue
			}
			if f[1] == "" {
				required = append(required, f[4])
			}
			typ := asyncType(t, string(text), strings.TrimRight(f[3], ", "), "          ")
			if strings.HasPrefix(strings.TrimSpace(typ), "$ref") { // a reference has no siblings
				typ = "          allOf:\n            - " + strings.TrimSpace(typ) + "\n"
			}
			fields += fmt.Sprintf("        %s:\n          x-cbor-key: %s\n%s", f[4], f[2], typ)
			if f[5] != "" {
				fields += fmt.Sprintf("          description: %s\n", strings.TrimPrefix(f[5], ": "))
			}
		}
		if len(required) > 0 {
			fmt.Fprintf(&b, "      required: [%s]\n", strings.Join(required, ", "))
		}
		b.WriteString("      properties:\n" + fields)
	}
	generated(t, asyncAPIFile, `  # From here on made from device.cddl by "go test ./mqttgw/wire -update".
  schemas:`, b.String())
}

var asyncField = regexp.MustCompile(`^\s*(\? )?(\d+): (.*?)\s*; (\w+)(: .*)?$`)

// asyncType is the JSON Schema of a type of the CDDL, as YAML. Scalars are
// given as they are in CBOR; a byte string has the format "bytes".
func asyncType(t *testing.T, text, typ, indent string) string {
	t.Helper()
	if m := regexp.MustCompile(`^\[0\*(\d+) ([a-z0-9-]+)\]$`).FindStringSubmatch(typ); m != nil {
		return fmt.Sprintf("%stype: array\n%smaxItems: %s\n%sitems:\n%s", indent, indent, m[1], indent, asyncType(t, text, m[2], indent+"  "))
	}
	if strings.HasPrefix(typ, `"`) { // words, and whatever a later version has
		words := regexp.MustCompile(`"([^"]*)"`).FindAllStringSubmatch(typ, -1)
		out := indent + "type: string\n" + indent + "examples: ["
		for i, w := range words {
			if i > 0 {
				out += ", "
			}
			out += `"` + w[1] + `"` // quoted: on and off are truths in YAML
		}
		return out + "]\n"
	}
	switch typ {
	case "text", "code / text":
		return fmt.Sprintf("%stype: string\n%smaxLength: %d\n", indent, indent, wire.MaxText)
	case "int":
		return indent + "type: integer\n"
	case "version":
		return indent + "type: integer\n" + indent + "minimum: 1\n" + indent + "maximum: 255\n"
	case "number53":
		return indent + "type: integer\n" + indent + "minimum: 0\n" + indent + "maximum: 9007199254740991\n"
	case "int32":
		return indent + "type: integer\n" + indent + "minimum: -2147483648\n" + indent + "maximum: 2147483647\n"
	case "unix":
		return indent + "type: integer\n" + indent + "minimum: 0\n" + indent + "maximum: 253402300799\n"
	case "instant":
		return indent + "type: [number, 'null']\n"
	case "bool":
		return indent + "type: boolean\n"
	case "uuid", "hash":
		return indent + "type: string\n" + indent + "format: bytes\n" + indent + "minLength: 16\n" + indent + "maxLength: 16\n"
	case "instance":
		return indent + "type: string\n" + indent + "format: bytes\n" + indent + "minLength: 8\n" + indent + "maxLength: 8\n"
	case "anchor":
		return fmt.Sprintf("%[1]stype: string\n%[1]sformat: bytes\n%[1]sminLength: %[2]d\n%[1]smaxLength: %[2]d\n", indent, wire.AnchorSize)
	case "der":
		return fmt.Sprintf("%[1]stype: string\n%[1]sformat: bytes\n%[1]sminLength: 1\n%[1]smaxLength: %[2]d\n", indent, wire.MaxCertificate)
	case "power", "tools":
		m := regexp.MustCompile(`(?m)^` + typ + ` = (.*)$`).FindStringSubmatch(text)
		return asyncType(t, text, m[1], indent)
	}
	if !strings.Contains(text, "\n"+typ+" = {\n") {
		t.Fatalf("no schema for the type %q", typ)
	}
	return fmt.Sprintf("%s$ref: '#/components/schemas/%s'\n", indent, typ)
}

// The document is one: it parses, and every reference leads somewhere.
func TestAsyncAPIReferences(t *testing.T) {
	b, err := os.ReadFile(asyncAPIFile)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	if doc["asyncapi"] != "3.0.0" {
		t.Errorf("asyncapi: %v", doc["asyncapi"])
	}
	refs := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				walk(x)
			}
		case map[string]any:
			for k, x := range v {
				ref, isText := x.(string)
				if k != "$ref" || !isText {
					walk(x)
					continue
				}
				refs++
				at := any(doc)
				for step := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
					m, _ := at.(map[string]any)
					at = m[step]
				}
				if at == nil {
					t.Errorf("%s leads nowhere", ref)
				}
			}
		}
	}
	walk(doc)
	if refs < 30 {
		t.Errorf("%d references found", refs)
	}
}

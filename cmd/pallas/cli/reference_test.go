package cli

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/reference/cli.md")

const reference = "../../../docs/reference/cli.md"

// TestReference fails when docs/reference/cli.md is not what the commands say;
// go generate writes it.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString(referenceHead)
	b.WriteString("\n## Exit codes\n\n| code | meaning |\n|---|---|\n")
	for _, c := range exitCodes {
		fmt.Fprintf(&b, "| %d | %s |\n", c.code, c.meaning)
	}
	root := (&app{in: strings.NewReader(""), out: io.Discard, err: io.Discard}).root()
	b.WriteString("\n## Flags of every command\n\n")
	flags(&b, root.PersistentFlags())
	b.WriteString("\n## Commands\n")
	walk(&b, root)
	if *update {
		if err := os.WriteFile(reference, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), b.String()); diff != "" {
		t.Errorf("docs/reference/cli.md is old; run go generate ./cmd/pallas/cli (-file +commands):\n%s", diff)
	}
}

func walk(b *strings.Builder, cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		if c.Hidden || c.Name() == "help" {
			continue
		}
		if !c.HasSubCommands() {
			fmt.Fprintf(b, "\n### %s\n\n```\n%s\n```\n\n", c.CommandPath(), c.UseLine())
			text := c.Long
			if text == "" || c.Parent().Name() == "completion" { // cobra's own explain each shell's set-up at length
				text = c.Short
			}
			b.WriteString(strings.TrimSuffix(text, ".") + ".\n")
			if len(c.Aliases) > 0 {
				fmt.Fprintf(b, "\nAlso: %s.\n", strings.Join(c.Aliases, ", "))
			}
			if c.HasAvailableLocalFlags() {
				b.WriteString("\n")
				flags(b, c.LocalNonPersistentFlags())
			}
		}
		walk(b, c)
	}
}

func flags(b *strings.Builder, fs *pflag.FlagSet) {
	var rows strings.Builder
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		text := f.Usage
		switch f.DefValue {
		case "", "false", "0", "0s", "[]":
		default:
			text += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&rows, "| `%s` | %s |\n", name, strings.ReplaceAll(text, "|", "\\|"))
	})
	if rows.Len() > 0 {
		b.WriteString("| flag | meaning |\n|---|---|\n" + rows.String())
	}
}

const referenceHead = `# The command line

` + "`pallas`" + ` is for operators. It talks to the HTTP API of a device manager and needs nothing else.
This page is generated from the source by ` + "`go generate ./cmd/pallas/cli`" + `.

## Where it connects

` + "`pallas login`" + ` keeps server, CA certificate and token in a *context* of the configuration file: the file that
` + "`PALLAS_CONFIG`" + ` names, or ` + "`pallas/config.yaml`" + ` in the user's configuration directory, readable for its owner alone.
Flags go before the environment (` + "`PALLAS_SERVER`, `PALLAS_CA_FILE`, `PALLAS_TOKEN_FILE`, `PALLAS_TOKEN`" + `), and the
environment before the context. When flags or environment name another server than the context's, the context's token and
CA are not used.

## Names

A device is named by its id, its exact name, or the beginning of its id (at least 4 characters). A virtual machine is
DEVICE/VM, its part likewise. A task is named by its id, an event by its position. A name that several things have is an
error that lists them with their ids.

## Output

| -o | what |
|---|---|
| ` + "`table`" + ` | aligned columns, for people; the default |
| ` + "`wide`" + ` | the same with more columns |
| ` + "`json`" + ` | one array of the API's objects; a watch prints one object per line |
| ` + "`yaml`" + ` | the same as YAML, without control characters |
| ` + "`ndjson`" + ` | one object per line, as they come |
| ` + "`name`" + ` | one name per line, fit for arguments |

Objects are those of schema/openapi.yaml. Columns and sentences may change; use json, yaml, ndjson or name in programs.
Results are on standard output, everything else on standard error: errors as ` + "`error: title: detail`" + ` with a line per wrong
field and a ` + "`hint:`" + ` where one is known. Colour and progress bars are only on a terminal, colour also not with NO_COLOR or
--no-color, and no status is told by colour alone. Control characters in the names of devices and virtual machines are
left out, or escaped in JSON. Times are UTC.
`

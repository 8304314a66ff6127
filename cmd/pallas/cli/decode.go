package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"pallas/mqttgw/wire"
)

// maxInput bounds what decode reads; the broker takes far less.
const maxInput = 16 << 20

func (a *app) decodeCommand() *cobra.Command {
	var direction, file string
	cmd := &cobra.Command{
		Use: "decode [DATA…]", Short: "Show a message of the device protocol, or a join string without its secret", Args: cobra.ArbitraryArgs,
		Long: "Show a message of the device protocol as JSON, with the names of its fields and what is wrong with it, or a join string without its secret.\n\n" +
			"The message is hex, base64 or binary, from the arguments, from --file, or else from standard input. No manager is needed.",
		RunE: func(_ *cobra.Command, args []string) error {
			var in []byte
			var err error
			switch {
			case file != "" && len(args) > 0:
				return usagef("want arguments or --file, not both")
			case len(args) > 0:
				in = []byte(strings.Join(args, ""))
			case file != "" && file != "-":
				if in, err = os.ReadFile(file); err != nil {
					return usagef("%v", err)
				}
			default:
				if in, err = io.ReadAll(io.LimitReader(a.in, maxInput)); err != nil {
					return fmt.Errorf("read standard input: %w", err)
				}
			}
			d := wire.Direction(direction)
			switch d {
			case "auto":
				d = wire.AnyDirection
			case wire.UpDirection, wire.DownDirection:
			default:
				return usagef("--direction %q: want up, down or auto", direction)
			}
			return a.decode(in, d)
		},
	}
	cmd.Flags().StringVar(&direction, "direction", "auto", "up from a device, down to one, or auto")
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to read; - is standard input")
	_ = cmd.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions([]string{"up", "down", "auto"}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	return cmd
}

func (a *app) decode(in []byte, d wire.Direction) error {
	var (
		shown any
		err   error
	)
	if text := strings.TrimSpace(string(in)); strings.HasPrefix(text, wire.JoinPrefix) {
		shown, err = wire.DescribeJoin(text)
	} else {
		shown, err = wire.Describe(payload(in), d)
	}
	if err != nil {
		return &Error{Code: exitError, Title: "cannot decode", Detail: err.Error()}
	}
	b, err := encode(shown, "  ")
	if err != nil {
		return err
	}
	// encode indents for a list; here it stands alone.
	fmt.Fprintf(a.out, "%s\n", bytes.ReplaceAll(b, []byte("\n  "), []byte("\n")))
	return nil
}

// payload reads hex or base64, in any of its alphabets, with or without
// padding and white space. Everything else is taken as it is.
func payload(in []byte) []byte {
	text := strings.Join(strings.Fields(string(in)), "")
	if b, err := hex.DecodeString(strings.TrimPrefix(text, "0x")); err == nil && len(b) > 0 {
		return b
	}
	plain := strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
	if b, err := base64.RawStdEncoding.DecodeString(plain); err == nil && len(b) > 0 {
		return b
	}
	return in
}

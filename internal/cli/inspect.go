package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "inspect REF…",
		Short:             "Show all there is to know of VMs, as a JSON array",
		Example:           "  banger inspect web",
		Args:              refs(-1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return inspect(a, refs, func(ref string) (api.VM, error) { return client.VM(cmd.Context(), ref) })
		},
	}
}

// inspect prints what get finds of each reference; the failures are told and fail the
// command after that.
func inspect[T any](a *app, refs []string, get func(ref string) (T, error)) error {
	found := []T{}
	var result error
	for _, ref := range unique(refs) {
		v, err := get(ref)
		if err != nil {
			a.report(err)
			result = exitCode(exitFailure)
			continue
		}
		found = append(found, v)
	}
	if err := a.json(found); err != nil {
		return err
	}
	return result
}

// json prints v, in ASCII where a character is no printable one.
func (a *app) json(v any) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	a.print("%s", ascii(text.String()))
	return nil
}

// ascii escapes in JSON what is no printable character, as JSON can.
func ascii(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r == '\n' || strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

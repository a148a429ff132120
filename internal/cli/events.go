package cli

import (
	"encoding/json"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) eventsCommand() *cobra.Command {
	var asJSON, once bool
	after := int64(-1)
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens to VMs, as it happens",
		Long: `Show every step of every VM's life and what caused it, from now on, until interrupted.
Events have ever growing numbers: --since N begins with the one after N, 0 with the oldest
that is kept.`,
		Example: "  banger events --json --since 120",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("since") && after < 0 {
				return badUsage("no event has the number %d; 0 stands before the first", after)
			}
			if once && !cmd.Flags().Changed("since") {
				after = 0
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			err = client.Events(cmd.Context(), after, !once, func(e api.Transition) bool {
				if asJSON {
					a.jsonLine(e)
				} else {
					a.print("%s\n", eventText(e))
				}
				return a.out.err == nil
			})
			return left(cmd.Context(), err)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "as one JSON object a line")
	f.BoolVar(&once, "no-follow", false, "end with the last there is; without --since, begin with the first")
	f.Int64Var(&after, "since", 0, "begin after the event of this `number`")
	cmd.Flag("since").DefValue = ""
	return cmd
}

// jsonLine prints v as one line.
func (a *app) jsonLine(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the API's types all have a JSON form
	}
	a.print("%s\n", ascii(string(b)))
}

func eventText(e api.Transition) string {
	if e.VM == "" {
		return e.At.Local().Format(time.DateTime) + "  " + shown(e.Cause) + ": " + shown(e.Reason)
	}
	from, to := string(e.From), string(e.To)
	if from == "" {
		from = "new"
	}
	if to == "" {
		to = "gone"
	}
	text := e.At.Local().Format(time.DateTime) + "  " + shown(e.Name) + "  " + shown(from) + " → " + shown(to) + "  (" + shown(e.Cause) + ")"
	if e.Reason != "" {
		text += ": " + shown(e.Reason)
	}
	return text
}

package cli

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) lsCommand() *cobra.Command {
	var all, quiet, asJSON bool
	var format string
	var sel selection
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"ps"},
		Short:   "List VMs",
		Example: "  banger ls -a",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			line, err := template.New("--format").Funcs(formatFuncs).Option("missingkey=error").Parse(format)
			if err != nil {
				return badUsage("%v", err)
			}
			match, err := sel.match()
			if err != nil {
				return err
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			all = all || asJSON || sel.used()
			list := client.VMsUp
			if all {
				list = client.VMs
			}
			listed, err := list(cmd.Context())
			if err != nil {
				return err
			}
			listed = slices.DeleteFunc(listed, func(vm api.VM) bool { return !match(vm) })
			if asJSON {
				return a.json(append([]api.VM{}, listed...))
			}
			if quiet {
				for _, vm := range listed {
					a.print("%s\n", shown(vm.Name))
				}
				return nil
			}
			if format != "" {
				return a.formatted(line, listed)
			}
			if !all && isTerminal(a.Stderr) {
				d, err := client.Daemon(cmd.Context())
				if err != nil {
					return err
				}
				if n := d.VMs - len(listed); n > 0 {
					defer a.note("%d stopped not shown; `banger ls -a` shows all", n)
				}
			}
			return a.table(vmRows(listed, time.Now()))
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "stopped ones too, and those that are kept ready")
	sel.filterFlag(cmd)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	cmd.Flags().BoolVar(&asJSON, "json", false, "all VMs, as a JSON array")
	cmd.Flags().StringVar(&format, "format", "", "a line for each VM by this Go `template`: '{{.Name}} {{.Network.IP}} {{bytes .Disk.AllocatedBytes}}'")
	return cmd
}

// formatFuncs are what a --format may call.
var formatFuncs = template.FuncMap{"bytes": bytesText}

// formatted prints a line for each VM. The only text in one that others choose is made fit
// for a terminal before.
func (a *app) formatted(line *template.Template, vms []api.VM) error {
	var text bytes.Buffer
	for _, vm := range vms {
		vm.Error = shown(vm.Error)
		if err := line.Execute(&text, vm); err != nil {
			return badUsage("%v", err)
		}
		text.WriteByte('\n')
	}
	a.print("%s", text.String())
	return nil
}

func vmRows(vms []api.VM, now time.Time) [][]string {
	head := []string{"NAME", "STATE", "IMAGE", "IP", "CPUS", "MEM", "DISK", "CHANGED", "UPTIME", "START"}
	rows := [][]string{head}
	for _, vm := range vms {
		row := []string{
			vm.Name, string(vm.State), vm.Image, vm.Network.IP, strconv.Itoa(vm.CPUs), bytesText(vm.MemoryBytes),
			vm.Disk.Driver + " " + bytesText(vm.Disk.AllocatedBytes) + "/" + bytesText(vm.Disk.VirtualBytes), changedText(vm.Disk), uptime(vm, now), startText(vm.Start),
		}
		if vm.Error != "" {
			if len(rows[0]) == len(head) {
				rows[0] = append(head, "REASON")
			}
			row = append(row, vm.Error)
		}
		rows = append(rows, row)
	}
	return rows
}

// changedText tells how much of a disk differs from its image, if that can be told.
func changedText(d api.Disk) string {
	if d.ChangedBytes == nil {
		return ""
	}
	return bytesText(*d.ChangedBytes)
}

func bytesText(n int64) string { return units.BytesSize(float64(n)) }

// uptime tells how long a VM has run, or since when it has not.
func uptime(vm api.VM, now time.Time) string {
	switch {
	case vm.State == api.StateStopped && vm.StoppedAt != nil:
		return "stopped " + ago(now.Sub(*vm.StoppedAt))
	case (vm.State == api.StateRunning || vm.State == api.StatePaused) && vm.StartedAt != nil:
		return duration(now.Sub(*vm.StartedAt))
	}
	return ""
}

func ago(d time.Duration) string { return duration(d) + " ago" }

// duration puts d into words. One below zero comes from a clock that was set back.
func duration(d time.Duration) string { return strings.ToLower(units.HumanDuration(max(0, d))) }

func startText(s *api.Start) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%s %.2fs", s.Kind, float64(s.MS)/1000)
}

// table prints rows in columns. Empty cells become a dash.
func (a *app) table(rows [][]string) error {
	var text bytes.Buffer // a tabwriter writes cell by cell
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	var line []byte
	for _, row := range rows {
		line = line[:0]
		for i, cell := range row {
			if cell == "" {
				cell = "-"
			}
			if i > 0 {
				line = append(line, '\t')
			}
			line = append(line, shown(cell)...)
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := a.out.Write(text.Bytes())
	return err
}

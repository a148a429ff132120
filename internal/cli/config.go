package cli

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/internal/config"
)

// configFlags gives every command the flags of the config's keys. Their help is that of
// banger config.
func configFlags(root *cobra.Command) {
	for _, k := range config.Keys {
		root.PersistentFlags().String(k.Flag(), "", k.Doc)
		if err := root.PersistentFlags().MarkHidden(k.Flag()); err != nil {
			panic(err) // it has just been defined
		}
	}
}

// configFlagsSet returns the values of those flags that were given.
func configFlagsSet(root *cobra.Command) map[string]string {
	set := map[string]string{}
	for _, k := range config.Keys {
		if f := root.PersistentFlags().Lookup(k.Flag()); f.Changed {
			set[k.Name] = f.Value.String()
		}
	}
	return set
}

// configEnv is the environment by which a daemon that is started gets what flags and the
// environment say here, wherever it runs.
func (a *app) configEnv() (env []string) {
	for _, s := range a.config.Settings {
		if len(s.Value) > 0 && !s.InFile() && (!s.IsDefault() || s.Key.Name == "state_dir" || s.Key.Name == "socket") {
			env = append(env, s.Key.Env()+"="+s.Text())
		}
	}
	if path := a.getenv("BANGER_CONFIG"); path != "" {
		if path, err := filepath.Abs(path); err == nil {
			env = append(env, "BANGER_CONFIG="+path)
		}
	}
	return env
}

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show what is configured, and where it comes from",
		Long: `Every setting is a key of the config file, an environment variable - BANGER_ and the key in
capitals - and a flag of both programs, the key with dashes. A flag goes before the
environment, and that before the file: $BANGER_CONFIG, else $XDG_CONFIG_HOME/banger/config.toml
(~/.config), else /etc/banger/config.toml. What the daemon reads it reads when it starts.`,
		Example: "  banger config show",
	}
	group(cmd)
	cmd.AddCommand(a.configShowCommand(), a.configExampleCommand())
	return cmd
}

// setting is a line of config show --json.
type setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"` // a string, a list of them, or null
	Origin string `json:"origin"`
	Env    string `json:"env"`
	Flag   string `json:"flag"`
}

func (a *app) configShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show every setting's value and where it comes from",
		Example: "  banger config show --json",
		Args:    args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			rows, list := [][]string{{"KEY", "VALUE", "FROM"}}, []setting{}
			for _, s := range a.config.Settings {
				rows = append(rows, []string{s.Key.Name, s.Text(), s.Origin})
				one := setting{Key: s.Key.Name, Origin: s.Origin, Env: s.Key.Env(), Flag: "--" + s.Key.Flag()}
				if len(s.Value) == 1 {
					one.Value = s.Value[0]
				} else if len(s.Value) > 1 {
					one.Value = s.Value
				}
				list = append(list, one)
			}
			if asJSON {
				return a.json(list)
			}
			return a.table(rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON array")
	return cmd
}

func (a *app) configExampleCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "example",
		Short:       "Print a config file with every key, explained and commented out",
		Example:     "  banger config example > ~/.config/banger/config.toml",
		Args:        args(0, 0, ""),
		Annotations: map[string]string{noConfig: ""},
		RunE: func(*cobra.Command, []string) error {
			a.print("%s", config.Example())
			return nil
		},
	}
}

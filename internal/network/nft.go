package network

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// install makes our tables those of the ruleset, in one transaction of the kernel's: at no
// moment is a guest unfiltered. Tables of any other name are not touched. Was is the ruleset
// that is there, as far as is known: where only elements of sets differ only those are
// changed, for the kernel takes milliseconds to put a whole chain in the place of another.
func install(was, rules Ruleset) error {
	if was.sameChains(rules) && exchange(was, rules) == nil {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	for _, t := range rules {
		own, err := ownTables(conn, t.Name)
		if err != nil {
			return err
		}
		for _, old := range own {
			if old.Family == t.Family {
				conn.DelTable(old)
			}
		}
		table := conn.AddTable(&nftables.Table{Family: t.Family, Name: t.Name})
		if err := addSets(conn, table, t.Sets); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		for _, c := range t.Chains {
			addChain(conn, table, c)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install nftables rules: %w", err)
	}
	return nil
}

// exchange changes the elements of sets from those of one ruleset to those of another. It
// fails if the sets are not what they are thought to be.
func exchange(was, rules Ruleset) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for i, t := range rules {
		table := &nftables.Table{Family: t.Family, Name: t.Name}
		for j, s := range t.Sets {
			set := &nftables.Set{Table: table, Name: s.Name, KeyType: s.Type, Concatenation: s.Concat}
			old := was[i].Sets[j].Elements
			if gone := without(old, s.Elements); len(gone) > 0 {
				if err := conn.SetDeleteElements(set, gone); err != nil {
					return err
				}
			}
			if fresh := without(s.Elements, old); len(fresh) > 0 {
				if err := conn.SetAddElements(set, fresh); err != nil {
					return err
				}
			}
		}
	}
	return conn.Flush()
}

// without returns the elements of a that are not in b.
func without(a, b []Element) (rest []nftables.SetElement) {
	for _, e := range a {
		if !slices.ContainsFunc(b, func(o Element) bool { return bytes.Equal(o.Key, e.Key) }) {
			rest = append(rest, nftables.SetElement{Key: e.Key})
		}
	}
	return rest
}

func addSets(conn *nftables.Conn, table *nftables.Table, sets []Set) error {
	for _, s := range sets {
		set := &nftables.Set{Table: table, Name: s.Name, KeyType: s.Type, Concatenation: s.Concat}
		var elements []nftables.SetElement
		for _, e := range s.Elements {
			elements = append(elements, nftables.SetElement{Key: e.Key})
		}
		if err := conn.AddSet(set, elements); err != nil {
			return err
		}
	}
	return nil
}

func addChain(conn *nftables.Conn, table *nftables.Table, c Chain) {
	priority, policy := nftables.ChainPriority(c.Priority), nftables.ChainPolicyAccept
	chain := conn.AddChain(&nftables.Chain{Name: c.Name, Table: table, Type: c.Type, Hooknum: c.Hook, Priority: &priority, Policy: &policy})
	for _, r := range c.Rules {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.exprs(), UserData: comment(r.Says)})
	}
}

func (r Rule) exprs() (all []expr.Any) {
	for _, c := range r.Clauses {
		all = append(all, c.exprs...)
	}
	return all
}

func comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }

func commentOf(r *nftables.Rule) string {
	text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return text
}

// ownTables lists those of our tables that are there.
func ownTables(conn *nftables.Conn, name string) (own []*nftables.Table, err error) {
	tables, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == name {
			own = append(own, t)
		}
	}
	return own, nil
}

// uninstall removes our tables. Finding none is success.
func uninstall(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	tables, err := ownTables(conn, name)
	if err != nil || len(tables) == 0 {
		return err
	}
	for _, t := range tables {
		conn.DelTable(t)
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables tables: %w", err)
	}
	return nil
}

// intact tells whether the kernel has the ruleset as it was installed: every rule in its
// place, and in every set what belongs there.
func intact(rules Ruleset) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("reach nftables: %w", err)
	}
	for _, t := range rules {
		own, err := ownTables(conn, t.Name)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(own, func(o *nftables.Table) bool { return o.Family == t.Family })
		if i < 0 {
			return false, nil
		}
		if same, err := sameTable(conn, own[i], t); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func sameTable(conn *nftables.Conn, table *nftables.Table, want Table) (bool, error) {
	for _, c := range want.Chains {
		have, err := conn.GetRules(table, &nftables.Chain{Name: c.Name, Table: table})
		if gone(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list nftables rules: %w", err)
		}
		if len(have) != len(c.Rules) {
			return false, nil
		}
		for i, r := range c.Rules {
			if commentOf(have[i]) != r.Says || len(have[i].Exprs) != len(r.exprs()) {
				return false, nil
			}
		}
	}
	for _, s := range want.Sets {
		have, err := conn.GetSetElements(&nftables.Set{Table: table, Name: s.Name})
		if gone(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list an nftables set: %w", err)
		}
		var keys [][]byte
		for _, e := range have {
			keys = append(keys, e.Key)
		}
		if !sameKeys(s.Elements, keys) {
			return false, nil
		}
	}
	return true, nil
}

// gone tells that what was asked for is not there. The library does not wrap all errors.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || err != nil && strings.Contains(err.Error(), unix.ENOENT.Error())
}

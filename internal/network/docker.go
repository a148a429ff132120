package network

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// An accept of ours does not overrule a drop in another's base chain, and Docker's drops
// what it does not know. It leaves a chain to its users for just that, in which two rules of
// ours let the bridge's packets by: what may pass is settled in our own table. They bear
// our mark and go with the bridge. Docker must have been started with iptables-nft; rules of
// the old iptables can't be reached by netlink, and the doctor says so.
const (
	dockerTable = "filter"
	dockerChain = "DOCKER-USER"
)

// dockerUser returns Docker's chain for its users, or nil.
func dockerUser(conn *nftables.Conn) (*nftables.Chain, error) {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Name == dockerChain && c.Table.Name == dockerTable {
			return c, nil
		}
	}
	return nil, nil
}

// dockerRule is one of our two rules there.
type dockerRule struct {
	says   string
	clause Clause
}

func dockerRules(c Config) []dockerRule {
	return []dockerRule{
		{c.Table + ": from " + c.Bridge, inputInterface(c.Bridge, true)},
		{c.Table + ": to " + c.Bridge, outputInterface(c.Bridge, true)},
	}
}

// missingInDocker returns Docker's chain, if there is one, and our rules that it lacks.
func missingInDocker(conn *nftables.Conn, c Config) (*nftables.Chain, []dockerRule, error) {
	chain, err := dockerUser(conn)
	if err != nil || chain == nil {
		return nil, nil, err
	}
	have, err := conn.GetRules(chain.Table, chain)
	if err != nil {
		return nil, nil, fmt.Errorf("list Docker's rules: %w", err)
	}
	return chain, slices.DeleteFunc(dockerRules(c), func(want dockerRule) bool {
		return slices.ContainsFunc(have, func(r *nftables.Rule) bool { return commentOf(r) == want.says })
	}), nil
}

func allowedInDocker(c Config) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("reach nftables: %w", err)
	}
	_, missing, err := missingInDocker(conn, c)
	return len(missing) == 0, err
}

// allowInDocker puts our rules where they are missing.
func allowInDocker(c Config) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	chain, missing, err := missingInDocker(conn, c)
	if err != nil || len(missing) == 0 {
		return err
	}
	for _, rule := range missing {
		// With a counter, as iptables writes and expects them.
		exprs := append(rule.clause.exprs[:len(rule.clause.exprs):len(rule.clause.exprs)], &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
		conn.InsertRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs, UserData: comment(rule.says)})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("let guests by Docker's rules: %w", err)
	}
	return nil
}

// disallowInDocker takes our rules out again. Finding none is success.
func disallowInDocker(table string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	chain, err := dockerUser(conn)
	if err != nil || chain == nil {
		return err
	}
	have, err := conn.GetRules(chain.Table, chain)
	if err != nil {
		return fmt.Errorf("list Docker's rules: %w", err)
	}
	for _, r := range have {
		if strings.HasPrefix(commentOf(r), table+": ") {
			if err := conn.DelRule(r); err != nil {
				return err
			}
		}
	}
	if err := conn.Flush(); err != nil && !gone(err) {
		return fmt.Errorf("take our rules out of Docker's chain: %w", err)
	}
	return nil
}

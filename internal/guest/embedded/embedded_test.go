package embedded

import (
	"bytes"
	"testing"

	"banger/internal/errs"
)

// The agent is either there and a program, or its absence is explained.
func TestAgent(t *testing.T) {
	agent, err := Agent()
	if err != nil {
		if errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
			t.Errorf("got %v", err)
		}
		return
	}
	if !bytes.HasPrefix(agent, []byte("\x7fELF")) {
		t.Error("what is embedded is no program")
	}
}

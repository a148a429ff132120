package daemon

import (
	"os"
	"testing"

	"banger/internal/jail"
)

// The daemon confines VMMs by starting its own program again. Here that is this one, which would
// otherwise run all its tests instead, and so itself again, without end.
func TestMain(m *testing.M) {
	jail.Main()
	os.Exit(m.Run())
}

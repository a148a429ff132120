package disk

import (
	"errors"
	"testing"

	"banger/internal/errs"
)

// A disk that there is no room for is no fault of banger's, whoever finds that out.
func TestMakeErrorOfAFullHost(t *testing.T) {
	err := makeError("/x", errors.New("qemu-img: error while writing at byte 167772160: No space left on device"))
	if errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("it says %v (%s)", err, errs.HintOf(err))
	}
}

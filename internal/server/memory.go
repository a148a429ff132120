package server

import (
	"runtime/debug"
	"runtime/metrics"
)

// idleMemory is what the daemon may hold, in bytes and beside its program, while no stream
// is open. The buffers of a large copy are several times that, and Go would keep them for
// minutes.
const idleMemory = 24 << 20

// giveBack returns to the host what the last streams have left, if that is much.
func giveBack() {
	held := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(held)
	if held[0].Value.Uint64()-held[1].Value.Uint64() > idleMemory {
		debug.FreeOSMemory()
	}
}

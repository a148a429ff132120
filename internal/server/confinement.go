package server

import (
	"fmt"

	"banger/api"
	"banger/internal/jail"
	"banger/internal/vm"
)

// showConfined is show with how the VM's machine is confined, which takes a look at it.
func (s *Server) showConfined(v vm.VM) api.VM {
	out := s.show(v)
	if words := s.VMs.Complaint(v); words != "" {
		out.Notes = append(out.Notes, "its VMM said last of what went wrong: "+words)
	}
	is, err := s.VMs.Confinement(v)
	if err != nil { // it does not run, or not any more
		return out
	}
	out.Confinement = &api.Confinement{
		UID: is.UID, GID: is.GID, Capabilities: fmt.Sprintf("%#x", is.Capabilities), NoNewPrivs: is.NoNewPrivs, Seccomp: is.Seccomp,
		OwnFiles: is.Has("mnt"), OwnNetwork: is.Has("net"),
		MemoryMaxBytes: limit(is.Limits.MemoryBytes), CPUsMax: limit(int64(is.Limits.CPUs)), ProcessesMax: limit(int64(is.Limits.Processes)),
		FileMaxBytes: limit(is.Limits.FileBytes), OpenFilesMax: limit(int64(is.Limits.OpenFiles)),
	}
	if !is.Has("mnt") {
		why := "as was asked for"
		if err := jail.Check(); err != nil {
			why = err.Error()
		}
		out.Notes = append(out.Notes, "its VMM is not confined to a user and files of its own: "+why)
		return out
	}
	if is.Limits.MemoryBytes < 0 || is.Limits.CPUs < 0 {
		_, why := jail.Lacking()
		out.Notes = append(out.Notes, "nothing but the host's own size limits the memory or the CPUs of its VMM: "+why)
	}
	return out
}

// limit is a limit as it is shown: those that there are.
func limit(n int64) *int64 {
	if n < 0 {
		return nil
	}
	return &n
}

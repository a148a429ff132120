package vm

import (
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"

	"banger/internal/errs"
)

// label is a DNS label (RFC 1123) in lower case.
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// anID matches what newID makes; a name like that would be taken for an id.
var anID = regexp.MustCompile(`^[0-9a-f]{12}$`)

// CheckName says whether name can name a VM: it becomes a host name, so it is a DNS label.
// errs.Invalid tells what is wrong with it.
func CheckName(name string) error {
	switch {
	case len(name) > 63:
		return errs.New(errs.Invalid, "the name %.20q… has %d characters; a name has at most 63", name, len(name))
	case !label.MatchString(name):
		return errs.New(errs.Invalid, "%q can't be a name", name).
			Try("use lower-case letters, digits and inner hyphens, as in a host name")
	case anID.MatchString(name):
		return errs.New(errs.Invalid, "%q looks like a VM's id, so it can't be a name", name)
	}
	return nil
}

var adjectives = strings.Fields(`able agile amber ample ardent azure balmy bold brave breezy bright brisk calm candid
	cheery clear clever cosy crisp daring deft eager early easy fair fancy fine fleet fond frank fresh gentle glad
	golden grand happy hardy hearty honest jolly keen kind lively loyal lucky mellow merry mild neat nimble noble
	plucky polite prime proud quick quiet rapid ready sharp shiny silver smart snug solid spry steady sunny swift
	tidy trusty upbeat vivid warm wise witty zesty`)

var nouns = strings.Fields(`acorn alder ash badger basil bay beaver birch bison brook canyon cedar clover comet coral
	crane creek delta dune eagle elm ember falcon fern finch fjord fox gale garnet glade grove gull hare harbor hawk
	hazel heron hill ibex iris island ivy jay juniper kestrel lagoon lark laurel linden lynx maple marten meadow
	mesa moose moss oak olive onyx orchid osprey otter owl pebble pine plover poppy puffin quartz quail raven reef
	ridge river robin rowan sable sage salmon sparrow spruce stork summit swan thistle tide tiger trout tulip vale
	walnut willow wren yarrow`)

// inventName makes up a name that taken does not hold.
func inventName(taken func(string) bool) string {
	for n := 0; ; n++ {
		name := adjectives[rand.IntN(len(adjectives))] + "-" + nouns[rand.IntN(len(nouns))]
		if n > 20 { // most pairs are in use
			name += "-" + strconv.Itoa(2+rand.IntN(n*n))
		}
		if !taken(name) {
			return name
		}
	}
}

// find returns the VM whose name or id alone begins with ref.
// errs.NotFound if there is none; errs.Invalid names the candidates of an ambiguous one.
func find(vms []VM, ref string) (VM, error) {
	if ref == "" {
		return VM{}, errs.New(errs.Invalid, "an empty name means no VM")
	}
	var near []VM
	for _, v := range vms {
		if strings.HasPrefix(v.Name, ref) || strings.HasPrefix(v.ID, ref) {
			near = append(near, v)
		}
	}
	switch len(near) {
	case 0:
		if len(ref) > 63 {
			ref = ref[:60] + "…"
		}
		return VM{}, errs.New(errs.NotFound, "there is no VM %q", ref).Try("banger ls -a lists them")
	case 1:
		return near[0], nil
	}
	names := make([]string, 0, len(near))
	for _, v := range near {
		names = append(names, v.Name+" ("+v.ID+")")
	}
	return VM{}, errs.New(errs.Invalid, "%q could be any of %s", ref, sentenceList(names))
}

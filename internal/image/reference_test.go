package image

import (
	"strings"
	"testing"

	"banger/internal/errs"
)

func TestParseReference(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct{ in, name, digest string }{
		{"debian", "debian", ""},
		{"debian:latest", "debian", ""},
		{"debian:12", "debian:12", ""},
		{"my.app_x--y/z:V1.0-rc_2", "my.app_x--y/z:V1.0-rc_2", ""},
		{"localhost:5000/app", "localhost:5000/app", ""},
		{"Registry.Example.org/a/b:latest", "Registry.Example.org/a/b", ""},
		{"debian@" + digest, "debian", digest},
		{"debian:12@" + digest, "debian:12", digest},
		{digest, "", digest},
		{digest[:19], "", digest[:19]},
	} {
		got, err := ParseReference(c.in)
		if err != nil || got.Name != c.name || got.Digest != c.digest {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
	}
	for _, in := range []string{
		"", ":", "@", "/", ":12", "a:", "a::b", "a:b:c", "a/", "/a", "a//b", "../images/tiny", ".", "..", "a/../b", "-a", "a-", "A", "a b", "a\nb",
		"a\x00", "\x1b[31mred", "ä", "a@", "@" + digest, "a@b", "a@sha256:", "a@sha256:xyz", "a@" + digest + "0", "a@@" + digest, "a@md5:" + digest[7:],
		"sha256:abc", "sha256:12345678901Z", "a:" + strings.Repeat("x", 129), strings.Repeat("a", 256), "a:.b", "a:-b", "host:port/x", "host:999999/x", "a___b",
	} {
		if got, err := ParseReference(in); errs.KindOf(err) != errs.Invalid || errs.HintOf(err) == "" {
			t.Errorf("%q: %+v, %v (%s)", in, got, err, errs.HintOf(err))
		}
	}
	for _, in := range []string{"a@" + digest, digest, digest[:19]} {
		if got, err := ParseName(in); err == nil {
			t.Errorf("%q is taken for the name %q", in, got)
		}
	}
}

// FuzzParseReference checks that what is understood is written so that it is understood the
// same, and that a name can never lead out of where names are kept.
func FuzzParseReference(f *testing.F) {
	f.Add("localhost:5000/a/b:c@sha256:0123456789abcdef")
	f.Add("../x")
	f.Fuzz(func(t *testing.T, in string) {
		r, err := ParseReference(in)
		if err != nil {
			return
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%q is %+v, which is %+v, %v", in, r, again, err)
		}
		if strings.Contains(r.Name, "..") || strings.HasPrefix(r.Name, "/") || strings.ContainsAny(r.Name, "\n\x00\\ ") {
			t.Errorf("%q is %+v", in, r)
		}
	})
}

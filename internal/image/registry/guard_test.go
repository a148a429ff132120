package registry

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"banger/internal/errs"
)

func TestRedirects(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	content := w.bytes(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials were sent to another host")
		}
		rw.Write(content)
	}))
	defer elsewhere.Close()
	to := elsewhere.URL
	w.fault(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, w.large.Hex) {
			return false
		}
		http.Redirect(rw, r, to+"/blob", http.StatusTemporaryRedirect)
		return true
	})
	if got, _, err := pulled(t, p, w.host()+"/app:1", nil); err != nil || got != whole {
		t.Errorf("got %q, %v", got, err)
	}
	to = "http://registry.invalid"
	_, _, err := pulled(t, newPuller(t), w.host()+"/app:1", nil)
	if err == nil || !strings.Contains(err.Error(), "plain text") {
		t.Errorf("a redirect to plain text elsewhere: %v", err)
	}
	to = w.URL + "/v2/app/blobs/" + w.large.String() // around in a circle
	if got, _, err := pulled(t, newPuller(t), w.host()+"/app:1", nil); err == nil {
		t.Errorf("in a circle: %q", got)
	}
}

func TestPlainTextIsForThisHostOnly(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:5000": true, "[::1]:5000": true, "[::1%lo]:5000": true, "::ffff:127.0.0.1": true, "[fe80::1%eth0]:5000": false, "localhost": true, "localhost:5000": true, "127.9.9.9": true,
		"10.0.0.1:5000": false, "registry.local": false, "localhost.example.com": false, "192.168.1.1": false,
	} {
		if got := isLoopback(address); got != want {
			t.Errorf("%s is %v", address, got)
		}
	}
	_, _, err := pulled(t, newPuller(t), "10.255.255.1:1/app", nil)
	if err == nil {
		t.Error("it worked")
	}
}

// answering answers everything.
type answering struct{}

func (answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

// A registry elsewhere can't have banger ask this host for something.
func TestGuard(t *testing.T) {
	for _, tc := range []struct {
		url             string
		elsewhere, here bool // whether it is let through for a registry there
	}{
		{"https://registry.example/v2/", true, true},
		{"https://10.0.0.1/v2/", true, true},
		{"http://registry.example/v2/", false, false},
		{"http://10.0.0.1/v2/", false, false},
		{"http://127.0.0.1:8080/admin", false, true},
		{"http://127.9.9.9/admin", false, true},
		{"http://[::1]:8080/admin", false, true},
		{"http://[::ffff:127.0.0.1]/admin", false, true},
		{"http://LOCALHOST:1/admin", false, true},
		{"http://localhost./admin", false, true},
		{"https://127.0.0.1/admin", false, true},
		{"https://a.localhost/admin", false, true},
		{"https://0.0.0.0/admin", false, true},
	} {
		for here, want := range map[bool]bool{true: tc.here, false: tc.elsewhere} {
			r, err := http.NewRequest("GET", tc.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = guard{answering{}, here}.RoundTrip(r)
			if want != (err == nil) || err != nil && errs.KindOf(err) != errs.Invalid {
				t.Errorf("%s, of a registry here %v: %v", tc.url, here, err)
			}
		}
	}
}

// A name that means this host is none of a registry elsewhere.
func TestDialer(t *testing.T) {
	for address, refused := range map[string]bool{"127.0.0.1:443": true, "[::1]:443": true, "0.0.0.0:443": true, "192.0.2.1:443": false, "[2001:db8::1]:443": false} {
		if err := refuseThisHost("tcp", address, nil); (err != nil) != refused {
			t.Errorf("%s: %v", address, err)
		}
	}
	w := newWorld(t)
	for _, here := range []bool{true, false} { // not here: a proxy
		c, err := dialer(time.Second, here)(t.Context(), "tcp", w.host())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

package server

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http/httptest"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write docs/openapi.json as it is served")

const openAPI = "../../docs/openapi.json"

// The description of the API that is checked in is the one that is served.
func TestOpenAPIIsTheOneServed(t *testing.T) {
	if os.Getenv("BANGER_RUNTIME_DIR") == "" && !*update {
		t.Skip("SKIP: make test runs it, after whatever changes the API")
	}
	w := httptest.NewRecorder()
	(&Server{}).Handler("1").ServeHTTP(w, httptest.NewRequest("GET", "/openapi.json", nil))
	var served bytes.Buffer
	if err := json.Indent(&served, w.Body.Bytes(), "", " "); err != nil {
		t.Fatal(err)
	}
	served.WriteByte('\n')
	if *update {
		if err := os.WriteFile(openAPI, served.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(kept, served.Bytes()) {
		t.Error("docs/openapi.json is not what is served now; make docs writes it")
	}
}

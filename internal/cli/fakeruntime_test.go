package cli

import (
	"encoding/json"
	"io"
	"net/http"

	"banger/api"
)

// runtime serves the runtime bundle. Its archive is a few bytes; of an artefact "broken" half
// of it comes before it fails.
func (f *fake) runtime(mux *http.ServeMux, handle func(string, func(*http.Request) (any, *api.Error))) {
	handle("GET /v1/runtime", func(*http.Request) (any, *api.Error) {
		return api.Runtime{Path: "/opt/banger/runtime", Rule: "BANGER_RUNTIME_DIR"}, nil
	})
	operation := func(kind string) func(*http.Request) (any, *api.Error) {
		return func(r *http.Request) (any, *api.Error) {
			body, _ := io.ReadAll(r.Body)
			f.note("%s %s", kind, body)
			return f.begin(kind, &api.VM{}), nil
		}
	}
	handle("POST /v1/runtime/build", operation("build"))
	handle("POST /v1/runtime/fetch", operation("fetch"))
	handle("POST /v1/runtime/install", operation("install"))
	handle("POST /v1/runtime/rollback", operation("rollback"))
	mux.HandleFunc("GET /v1/runtime/verify", func(w http.ResponseWriter, _ *http.Request) {
		enc := json.NewEncoder(w)
		enc.Encode(api.Verdict{What: "kernels/debian/vmlinux"})
		enc.Encode(api.Verdict{What: "images/x\x1b[2J", Problem: "it is missing"})
	})
	mux.HandleFunc("GET /v1/runtime/archive", func(w http.ResponseWriter, r *http.Request) {
		only := r.URL.Query()["only"]
		f.noteNow("pack %s", fmtList(only))
		w.Header().Set("Trailer", api.ErrorTrailer)
		io.WriteString(w, "an arch")
		if len(only) > 0 && only[0] == "broken" {
			b, _ := json.Marshal(fail("conflict", "move it away", "/b/id has a private key"))
			w.Header().Set(api.ErrorTrailer, string(b))
			return
		}
		io.WriteString(w, "ive\n")
	})
}

func fmtList(list []string) string {
	b, _ := json.Marshal(list)
	return string(b)
}

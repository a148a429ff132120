// Package banger carries the files at the root of the repository that its programs read.
package banger

import _ "embed"

// RuntimeBundle is runtime-bundle.toml.
//
//go:embed runtime-bundle.toml
var RuntimeBundle []byte

package undo

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestRollbackRunsInReverseAndOnce(t *testing.T) {
	var s Stack
	var ran []string
	for _, name := range []string{"disk", "network", "process"} {
		s.Push(name, func(context.Context) error { ran = append(ran, name); return nil })
	}
	for range 2 {
		if err := s.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"process", "network", "disk"}; !slices.Equal(ran, want) {
		t.Errorf("ran %v, want %v", ran, want)
	}
}

func TestRollbackIgnoresCancellationButIsBounded(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "kept"))
	cancel()
	var s Stack
	s.Push("disk", func(ctx context.Context) error {
		if _, bounded := ctx.Deadline(); !bounded {
			t.Error("the step has no deadline")
		}
		if ctx.Value(key{}) != "kept" {
			t.Error("the step lost the context's values")
		}
		return ctx.Err()
	})
	if err := s.Rollback(ctx); err != nil {
		t.Errorf("the step saw the caller's cancellation: %v", err)
	}
}

func TestRollbackJoinsFailuresAndGoesOn(t *testing.T) {
	var s Stack
	tapErr, diskErr := errors.New("device busy"), errors.New("read-only")
	reached := false
	s.Push("first", func(context.Context) error { reached = true; return nil })
	s.Push("disk", func(context.Context) error { return diskErr })
	s.Push("odd", func(context.Context) error { panic("index out of range") })
	s.Push("tap", func(context.Context) error { return tapErr })

	err := s.Rollback(t.Context())
	if !errors.Is(err, tapErr) || !errors.Is(err, diskErr) {
		t.Errorf("an error is lost: %v", err)
	}
	want := "undo tap: device busy\nundo odd: panic: index out of range\nundo disk: read-only"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if !reached {
		t.Error("a failure kept an earlier step from being undone")
	}
}

func TestDisarmKeepsEverything(t *testing.T) {
	var s Stack
	s.Push("disk", func(context.Context) error { t.Error("ran after Disarm"); return nil })
	s.Disarm()
	s.Push("late", func(context.Context) error { t.Error("ran after Disarm"); return nil })
	if err := s.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
}

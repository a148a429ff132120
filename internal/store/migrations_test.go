package store

import (
	"path/filepath"
	"testing"
)

// Rows of a version that did not say what a disk lies on are told.
func TestDisksOfAnEarlierVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s := open(t, path)
	if _, err := s.db.Exec(`INSERT INTO vms (id, name, state, doc) VALUES ('0123456789ab', 'web', 'stopped',
		'{"id":"0123456789ab","name":"web","state":"stopped","base":{"Path":"/images/a.ext4","Bytes":4096},"disk":{"driver":"qcow2","path":"/v/root.qcow2","format":"qcow2","virtual_bytes":8192}}');
		DROP INDEX vms_address; ALTER TABLE vms DROP COLUMN address; PRAGMA user_version = 2`); err != nil {
		t.Fatal(err)
	}
	s.Close()
	got, err := open(t, path).Get(t.Context(), "web")
	if err != nil || got.Disk.On == nil || got.Disk.On.Path != "/images/a.ext4" || got.Disk.On.Bytes != 4096 || got.Disk.VirtualBytes != 8192 {
		t.Errorf("%+v, %v", got.Disk, err)
	}
}

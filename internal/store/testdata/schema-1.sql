BEGIN TRANSACTION;
CREATE TABLE events (
    seq   INTEGER PRIMARY KEY AUTOINCREMENT,
    at    INTEGER NOT NULL, -- Unix time in microseconds
    vm_id TEXT NOT NULL,
    name  TEXT NOT NULL,
    state TEXT NOT NULL,    -- the state it came to; 'removed' when its row went
    cause TEXT NOT NULL
) STRICT;
INSERT INTO "events" VALUES(1,1000000,'0123456789ab','web','creating','create');
INSERT INTO "events" VALUES(2,2000000,'0123456789ab','web','running','started');
INSERT INTO "events" VALUES(3,3000000,'ffffffffffff','gone','removed','rm');
CREATE TABLE resources (
    vm_id  TEXT NOT NULL REFERENCES vms (id) ON DELETE RESTRICT,
    kind   TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'live')),
    PRIMARY KEY (vm_id, kind)
) STRICT, WITHOUT ROWID;
INSERT INTO "resources" VALUES('0123456789ab','directory','live');
INSERT INTO "resources" VALUES('0123456789ab','disk','live');
INSERT INTO "resources" VALUES('0123456789ab','machine','live');
INSERT INTO "resources" VALUES('ba9876543210','directory','live');
INSERT INTO "resources" VALUES('ba9876543210','disk','live');
CREATE TABLE vms (
    id    TEXT PRIMARY KEY,
    name  TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    doc   TEXT NOT NULL -- the whole VM as JSON; id, name and state above are copies for SQL
) STRICT;
INSERT INTO "vms" VALUES('0123456789ab','web','running','{"id":"0123456789ab","name":"web","spec":{"image":"tiny","kernel":"debian","cpus":2,"memory_bytes":536870912,"disk_bytes":0,"net":"none","accel":"tcg","env":["A=b"]},"state":"running","machine_id":"0123456789ab0123456789ab01234567","ssh_host_key":"PEM of web","ssh_host_key_pub":"ssh-ed25519 web","base":{"Path":"/var/lib/banger/images/tiny/rootfs-065814a53f1c46dc.ext4","Bytes":268435456},"disk":{"driver":"qcow2","path":"/var/lib/banger/vms/0123456789ab/root.qcow2","virtual_bytes":268435456,"format":"qcow2"},"created_at":"2026-03-01T10:00:00Z","started_at":"2026-03-01T10:00:01Z","start_took":2400000000,"machine":{"process":{"pid":4711,"start_ticks":815,"boot_id":"7d9d0f3e-1c2b-4a59-8e6f-2b1a0c9d8e7f"},"dir":"/var/lib/banger/vms/0123456789ab","vm_id":"0123456789ab","accel":"tcg"}}');
INSERT INTO "vms" VALUES('ba9876543210','db','stopped','{"id":"ba9876543210","name":"db","spec":{"image":"tiny","kernel":"debian","cpus":2,"memory_bytes":536870912,"disk_bytes":0,"net":"none","accel":"tcg","env":["A=b"]},"state":"stopped","machine_id":"ba9876543210ba9876543210ba987654","ssh_host_key":"PEM of db","ssh_host_key_pub":"ssh-ed25519 db","base":{"Path":"/var/lib/banger/images/tiny/rootfs-065814a53f1c46dc.ext4","Bytes":268435456},"disk":{"driver":"qcow2","path":"/var/lib/banger/vms/ba9876543210/root.qcow2","virtual_bytes":268435456,"format":"qcow2"},"created_at":"2026-03-01T10:00:00Z","started_at":"2026-03-01T10:00:01Z","start_took":2400000000,"stopped_at":"2026-03-01T11:00:00Z","reason":"the host was restarted"}');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',3);
COMMIT;
PRAGMA user_version = 1;

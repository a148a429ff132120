CREATE TABLE vms (
    id    TEXT PRIMARY KEY,
    name  TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    doc   TEXT NOT NULL -- the whole VM as JSON; id, name and state above are copies for SQL
) STRICT;

-- Host objects that VMs own. A row is written before the object is made and goes after the
-- object has gone, so a VM's row can't go while an object of it may exist.
CREATE TABLE resources (
    vm_id  TEXT NOT NULL REFERENCES vms (id) ON DELETE RESTRICT,
    kind   TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'live')),
    PRIMARY KEY (vm_id, kind)
) STRICT, WITHOUT ROWID;

-- What happened, for ever in order.
CREATE TABLE events (
    seq   INTEGER PRIMARY KEY AUTOINCREMENT,
    at    INTEGER NOT NULL, -- Unix time in microseconds
    vm_id TEXT NOT NULL,
    name  TEXT NOT NULL,
    state TEXT NOT NULL,    -- the state it came to; 'removed' when its row went
    cause TEXT NOT NULL
) STRICT;

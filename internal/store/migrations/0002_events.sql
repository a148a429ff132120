ALTER TABLE events ADD COLUMN was TEXT NOT NULL DEFAULT '';    -- the state it came from; '' when its row was new
ALTER TABLE events ADD COLUMN reason TEXT NOT NULL DEFAULT ''; -- why it is failed, or why it stopped if nobody asked

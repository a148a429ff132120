-- What an overlay lies on is part of the disk.
UPDATE vms SET doc = json_set(doc, '$.disk.on', json_extract(doc, '$.base'))
WHERE json_extract(doc, '$.disk.driver') = 'qcow2' AND json_extract(doc, '$.disk.on') IS NULL;

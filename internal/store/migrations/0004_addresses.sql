-- Two VMs can't have the same address on the bridge, whatever goes wrong above.
ALTER TABLE vms ADD COLUMN address TEXT GENERATED ALWAYS AS (json_extract(doc, '$.address')) VIRTUAL;
CREATE UNIQUE INDEX vms_address ON vms (address);

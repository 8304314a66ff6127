package projections

// schemaVersion names the tables and what Apply writes to them. Any change of
// either needs another number; files of another version are built anew.
const schemaVersion = 105

// applicationID marks the file as ours ("Plls" in ASCII), so that a path that
// names somebody else's database is refused and not overwritten.
const applicationID = 0x506c6c73

// schemaDDL creates the tables of schemaVersion.
//
// The *_key columns are the lower-case forms that lists are sorted and
// searched by. Indexes end in the sort key and the id so that a page is read
// in order from where the one before it ended.
const schemaDDL = `
CREATE TABLE meta (
	id       INTEGER PRIMARY KEY CHECK (id = 1),
	position INTEGER NOT NULL,
	decision TEXT NOT NULL  -- id of the decision at position: tells one log from another
) STRICT;
INSERT INTO meta VALUES (1, 0, '');

CREATE TABLE devices (
	id                  TEXT PRIMARY KEY,
	name                TEXT NOT NULL,
	name_key            TEXT NOT NULL,
	host_key            TEXT NOT NULL DEFAULT '',
	trust               TEXT NOT NULL,
	connection          TEXT NOT NULL DEFAULT 'never',
	condition           TEXT NOT NULL DEFAULT '',
	version             TEXT NOT NULL DEFAULT '',
	revision            INTEGER NOT NULL,
	changed_position    INTEGER NOT NULL,
	changed_at          INTEGER NOT NULL,
	connection_since    INTEGER,
	lost_reason         TEXT NOT NULL DEFAULT '',
	address             TEXT NOT NULL DEFAULT '',
	agent_version       TEXT NOT NULL,
	protocol            INTEGER NOT NULL DEFAULT 0,
	condition_message   TEXT NOT NULL DEFAULT '',
	condition_since     INTEGER,
	labels              TEXT NOT NULL,
	notes               TEXT NOT NULL DEFAULT '',
	site                TEXT NOT NULL DEFAULT 'null',
	key_hash            TEXT NOT NULL,
	cert_serial         TEXT NOT NULL DEFAULT '',
	cert_not_after      INTEGER,
	cert_issuer         TEXT NOT NULL DEFAULT '',
	cert_reason         TEXT NOT NULL DEFAULT '',
	rotation_at         INTEGER,
	anchors             TEXT NOT NULL DEFAULT 'null',
	join_token          TEXT NOT NULL,
	registered_at       INTEGER NOT NULL,
	approved_at         INTEGER,
	approved_by         TEXT NOT NULL DEFAULT '',
	approval            TEXT NOT NULL DEFAULT '',
	retired_at          INTEGER,
	retired_by          TEXT NOT NULL DEFAULT '',
	retired_reason      TEXT NOT NULL DEFAULT '',
	trust_since         INTEGER,
	trust_by            TEXT NOT NULL DEFAULT '',
	trust_reason        TEXT NOT NULL DEFAULT '',
	trust_cause         TEXT NOT NULL DEFAULT '',  -- of a quarantine
	trust_before        TEXT NOT NULL DEFAULT '',  -- what a release gives back
	claim_key           TEXT NOT NULL DEFAULT '',  -- '' for no claim of another key
	claim_name          TEXT NOT NULL DEFAULT '',
	claim_agent         TEXT NOT NULL DEFAULT '',
	claim_token         TEXT NOT NULL DEFAULT '',
	claim_address       TEXT NOT NULL DEFAULT '',
	claim_at            INTEGER,
	inventory_hash      TEXT NOT NULL DEFAULT '',
	inventory_synced_at INTEGER,
	host_at             INTEGER,  -- NULL until the host was observed
	host_name           TEXT NOT NULL DEFAULT '',
	vendor              TEXT NOT NULL DEFAULT '',
	model               TEXT NOT NULL DEFAULT '',
	serial              TEXT NOT NULL DEFAULT '',
	uuid                TEXT NOT NULL DEFAULT '',
	product             TEXT NOT NULL DEFAULT '',
	build               TEXT NOT NULL DEFAULT '',
	cpu_model           TEXT NOT NULL DEFAULT '',
	cpu_sockets         INTEGER NOT NULL DEFAULT 0,
	cpu_cores           INTEGER NOT NULL DEFAULT 0,
	cpu_threads         INTEGER NOT NULL DEFAULT 0,
	cpu_mhz             INTEGER NOT NULL DEFAULT 0,
	memory_mib          INTEGER NOT NULL DEFAULT 0,
	boot_time           INTEGER,
	maintenance         INTEGER NOT NULL DEFAULT 0,
	license_name        TEXT NOT NULL DEFAULT '',
	license_edition     TEXT NOT NULL DEFAULT '',
	license_expires     INTEGER,
	license_writable    INTEGER NOT NULL DEFAULT 0,
	license_reason      TEXT NOT NULL DEFAULT '',
	datastores          TEXT NOT NULL DEFAULT 'null',
	networks            TEXT NOT NULL DEFAULT 'null'
) STRICT;
CREATE INDEX devices_by_name       ON devices (name_key, id, host_key);
CREATE INDEX devices_by_trust      ON devices (trust, name_key, id);
CREATE INDEX devices_by_connection ON devices (connection, name_key, id);
CREATE INDEX devices_by_condition  ON devices (condition, name_key, id);
CREATE INDEX devices_by_version    ON devices (version, name_key, id);
CREATE INDEX devices_by_certificate ON devices (cert_not_after, trust, name_key, id);

CREATE TABLE device_counts (
	trust      TEXT NOT NULL,
	connection TEXT NOT NULL,
	condition  TEXT NOT NULL,
	version    TEXT NOT NULL,
	n          INTEGER NOT NULL,
	PRIMARY KEY (trust, connection, condition, version)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER devices_count AFTER INSERT ON devices BEGIN
	INSERT INTO device_counts VALUES (new.trust, new.connection, new.condition, new.version, 1)
		ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER devices_recount AFTER UPDATE OF trust, connection, condition, version ON devices
WHEN (old.trust, old.connection, old.condition, old.version) IS NOT (new.trust, new.connection, new.condition, new.version) BEGIN
	UPDATE device_counts SET n = n - 1
		WHERE (trust, connection, condition, version) = (old.trust, old.connection, old.condition, old.version);
	INSERT INTO device_counts VALUES (new.trust, new.connection, new.condition, new.version, 1)
		ON CONFLICT DO UPDATE SET n = n + 1;
END;

-- What text search looks through, and the rows whose text is to be written
-- there before the transaction ends; see text.go.
CREATE VIRTUAL TABLE device_text USING fts4 (content="", words, matchinfo=fts3);
CREATE TABLE device_text_due (docid INTEGER PRIMARY KEY) STRICT;
CREATE TRIGGER devices_text AFTER INSERT ON devices BEGIN
	INSERT INTO device_text_due VALUES (new.rowid) ON CONFLICT DO NOTHING;
END;
CREATE TRIGGER devices_retext AFTER UPDATE OF name_key, host_key ON devices
WHEN (old.name_key, old.host_key) IS NOT (new.name_key, new.host_key) BEGIN
	INSERT INTO device_text_due VALUES (new.rowid) ON CONFLICT DO NOTHING;
END;

CREATE TABLE device_labels (
	device   TEXT NOT NULL,
	key      TEXT NOT NULL,
	value    TEXT NOT NULL,
	name_key TEXT NOT NULL,  -- the device's, so that one label lists in order
	PRIMARY KEY (device, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_labels_by_value ON device_labels (key, value, name_key, device);

CREATE TABLE vms (
	device           TEXT NOT NULL,
	id               TEXT NOT NULL,
	name             TEXT NOT NULL,
	name_key         TEXT NOT NULL,
	power            TEXT NOT NULL,
	tools            TEXT NOT NULL,
	cpus             INTEGER NOT NULL,
	memory_mib       INTEGER NOT NULL,
	guest_id         TEXT NOT NULL,
	guest_name       TEXT NOT NULL,
	hostname         TEXT NOT NULL,
	ips              TEXT NOT NULL,
	disks            TEXT NOT NULL,
	nics             TEXT NOT NULL,
	boot_time        INTEGER,
	first_seen_at    INTEGER NOT NULL,
	changed_at       INTEGER NOT NULL,
	changed_position INTEGER NOT NULL,
	PRIMARY KEY (device, id)
) STRICT;
CREATE INDEX vms_by_name   ON vms (name_key, device, id, guest_name, hostname, ips);
CREATE INDEX vms_by_device ON vms (device, name_key, id, power);
CREATE INDEX vms_by_power  ON vms (power, name_key, device, id);

CREATE TABLE vm_counts (
	power TEXT PRIMARY KEY,
	n     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TRIGGER vms_count AFTER INSERT ON vms BEGIN
	INSERT INTO vm_counts VALUES (new.power, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER vms_uncount AFTER DELETE ON vms BEGIN
	UPDATE vm_counts SET n = n - 1 WHERE power = old.power;
END;
CREATE TRIGGER vms_recount AFTER UPDATE OF power ON vms WHEN old.power <> new.power BEGIN
	UPDATE vm_counts SET n = n - 1 WHERE power = old.power;
	INSERT INTO vm_counts VALUES (new.power, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE VIRTUAL TABLE vm_text USING fts4 (content="", words, matchinfo=fts3);
CREATE TABLE vm_text_due (docid INTEGER PRIMARY KEY) STRICT;
CREATE TRIGGER vms_text AFTER INSERT ON vms BEGIN
	INSERT INTO vm_text_due VALUES (new.rowid) ON CONFLICT DO NOTHING;
END;
CREATE TRIGGER vms_retext AFTER UPDATE OF name_key, guest_name, hostname, ips ON vms
WHEN (old.name_key, old.guest_name, old.hostname, old.ips) IS NOT (new.name_key, new.guest_name, new.hostname, new.ips) BEGIN
	INSERT INTO vm_text_due VALUES (new.rowid) ON CONFLICT DO NOTHING;
END;

CREATE TABLE tasks (
	id                  TEXT NOT NULL,
	device              TEXT NOT NULL,
	kind                TEXT NOT NULL,
	vm                  TEXT NOT NULL,
	vm_name             TEXT NOT NULL,  -- when the task was requested
	status              TEXT NOT NULL,
	percent             INTEGER NOT NULL DEFAULT 0,
	message             TEXT NOT NULL DEFAULT '',
	code                TEXT NOT NULL DEFAULT '',
	requested_position  INTEGER NOT NULL,
	requested_at        INTEGER NOT NULL,
	requested_by        TEXT NOT NULL,
	source              TEXT NOT NULL,
	cause               TEXT NOT NULL,
	deadline            INTEGER,
	accepted_at         INTEGER,
	ended_at            INTEGER,
	cancel_requested_at INTEGER,
	cancel_requested_by TEXT NOT NULL DEFAULT '',
	late_at             INTEGER,
	late_status         TEXT NOT NULL DEFAULT '',
	late_code           TEXT NOT NULL DEFAULT '',
	late_message        TEXT NOT NULL DEFAULT '',
	changed_position    INTEGER NOT NULL,
	changed_at          INTEGER NOT NULL,
	PRIMARY KEY (id, device)
) STRICT;
CREATE INDEX tasks_by_request ON tasks (requested_position, id);
CREATE INDEX tasks_by_device  ON tasks (device, requested_position, id);
CREATE INDEX tasks_by_vm      ON tasks (device, vm, requested_position, id);
CREATE INDEX tasks_by_status  ON tasks (status, requested_position, id);
CREATE INDEX tasks_open       ON tasks (requested_position, id, status) WHERE ended_at IS NULL;

CREATE TABLE join_tokens (
	id               TEXT PRIMARY KEY,
	name             TEXT NOT NULL,
	max_uses         INTEGER NOT NULL,
	used             INTEGER NOT NULL DEFAULT 0,
	expires          INTEGER,
	auto_approve     INTEGER NOT NULL,
	labels           TEXT NOT NULL,
	name_pattern     TEXT NOT NULL,
	device           TEXT NOT NULL DEFAULT '',
	created_position INTEGER NOT NULL,
	created_at       INTEGER NOT NULL,
	created_by       TEXT NOT NULL,
	revoked_at       INTEGER,
	revoked_by       TEXT NOT NULL DEFAULT '',
	revision         INTEGER NOT NULL
) STRICT;
CREATE INDEX join_tokens_by_creation ON join_tokens (created_position, id);

CREATE TABLE join_token_uses (
	token    TEXT NOT NULL,
	device   TEXT NOT NULL,
	position INTEGER NOT NULL,
	at       INTEGER NOT NULL,
	PRIMARY KEY (token, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX join_token_uses_by_position ON join_token_uses (token, position, device);
`

package events_test

import (
	"time"

	"pallas/events"
)

// The ids of the examples.
const (
	exampleDevice = events.DeviceID("6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f")
	exampleVM     = events.VMID("52c1a7d0-4b8e-9f31-0d62-7e5a4c3b2a19")
	exampleTask   = events.TaskID("3b0e8f54-92d7-5c1a-8f46-d1c2b3a49587")
	exampleToken  = events.TokenID("01976b2e-7c3d-7a41-b5f8-2d9c0e6f1a34")
	exampleUser   = events.UserID("019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e")
	exampleGrant  = events.GrantID("019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4f")
	exampleNext   = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
	exampleHash   = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

func ptr[T any](v T) *T { return &v }

// examples has one event of each type with every field set. The golden files
// are what these have been stored as since their release: add examples, never
// change one.
func examples() []events.Event {
	disks := []events.Disk{
		{Key: 2000, Label: "Hard disk 1", CapacityMiB: 40960, Datastore: "datastore1", File: "[datastore1] pos-db/pos-db.vmdk", Thin: true},
	}
	nics := []events.NIC{
		{Key: 4000, Label: "Network adapter 1", MAC: "00:0c:29:3e:5f:a1", Network: "VM Network", Connected: true},
	}
	return []events.Event{
		events.DeviceRegistered{
			Device: exampleDevice, Name: "esx-fra-017", JoinToken: exampleToken,
			Labels: map[string]string{"site": "fra", "role": "pos"}, KeyHash: exampleHash, AgentVersion: "1.0.0",
		},
		events.DeviceApproved{Policy: "auto"},
		events.CertificateIssued{
			Serial: "5d2c9e4f1a7b3086", KeyHash: exampleHash,
			NotBefore: at("2031-05-06T07:03:09Z"), NotAfter: at("2031-08-04T07:08:09Z"),
			Issuer: exampleHash[:16], Reason: events.CertificateEnrol,
		},
		events.CertificateRotationRequested{},
		events.DeviceAnchorsChanged{Anchors: []string{exampleHash[:16], exampleHash[16:32]}},
		events.DeviceConnected{Address: "198.51.100.23", AgentVersion: "1.0.0", Protocol: 1},
		events.DeviceLost{Reason: "Stale Connection", Since: at("2031-05-06T07:20:41.52Z")},
		events.DeviceLabelled{Labels: map[string]string{"site": "fra", "role": "kiosk", "floor": "2"}},
		events.DeviceRenamed{Name: "Frankfurt Zeil, Kasse 17 <Erdgeschoß>"},
		events.DeviceDescribed{
			Notes: "Behind the counter.\nKey: ask for the shift leader.",
			Site:  &events.Site{Name: "Frankfurt, Zeil 106", Latitude: ptr(50.1147), Longitude: ptr(8.6821)},
		},
		events.DeviceRetired{Reason: "shop closed"},
		events.DeviceRejected{Reason: "nobody ordered it"},
		events.DeviceQuarantined{
			Cause: events.QuarantineClone, Reason: "another key asked for a certificate", KeyHash: exampleHash, Serial: "5d2c9e4f1a7b3086",
			Other: exampleDevice, Instances: []string{"1f0e2d3c4b5a6978", "8796a5b4c3d2e1f0"},
		},
		events.DeviceReleased{Reason: "found again"},
		events.DeviceKeyClaimed{KeyHash: exampleHash, JoinToken: exampleToken, Name: "esx-fra-017", AgentVersion: "1.0.0"},
		events.DeviceRekeyed{KeyHash: exampleHash, Policy: "token", JoinToken: exampleToken},
		events.HostObserved{Host: events.Host{
			Name: "esx-fra-017.shop.example", Vendor: "Dell Inc.", Model: "PowerEdge XR4510c", Serial: "7XK2M93",
			UUID: "4c4c4544-0058-4b10-8032-b7c04f4d3933", Product: "VMware ESXi", Version: "8.0.2", Build: "22380479",
			CPUModel: "Intel(R) Xeon(R) D-2733NT CPU @ 2.10GHz", CPUSockets: 1, CPUCores: 8, CPUThreads: 16, CPUMHz: 2100,
			MemoryMiB: 65190, BootTime: at("2031-04-02T03:14:15Z"), Maintenance: true,
			License: events.License{
				Name: "VMware vSphere 8 Evaluation", Edition: "eval", Expires: at("2031-07-01T00:00:00Z"),
				Writable: true, Reason: "feature vSphereAPI is licensed",
			},
			Datastores: []events.Datastore{
				{ID: "datastore-10", Name: "datastore1", Type: "VMFS", CapacityMiB: 915456, FreeMiB: 402432, Accessible: true},
			},
			Networks: []events.Network{{ID: "HaNetwork-VM Network", Name: "VM Network"}},
		}},
		events.HostConditionChanged{Condition: events.ConditionUnreachable, Message: "dial tcp 169.254.1.1:443: connection refused"},
		events.VMObserved{VM: events.VM{
			ID: exampleVM, Name: "pos-db", Power: events.PowerOn, CPUs: 2, MemoryMiB: 4096,
			GuestID: "ubuntu64Guest", GuestName: "Ubuntu Linux (64-bit)", Hostname: "pos-db", IPs: []string{"10.17.0.11", "fe80::20c:29ff:fe3e:5fa1"},
			Tools: events.ToolsRunning, Disks: disks, NICs: nics, BootTime: at("2031-04-02T03:20:00Z"),
		}},
		events.VMChanged{VM: exampleVM, Patch: events.VMPatch{
			Name: ptr("pos-db-old"), Power: ptr(events.PowerOff), CPUs: ptr(4), MemoryMiB: ptr(int64(8192)),
			GuestID: ptr("debian12_64Guest"), GuestName: ptr("Debian GNU/Linux 12 (64-bit)"), Hostname: ptr("pos-db-2"),
			IPs: &[]string{}, Tools: ptr(events.ToolsNotRunning), Disks: &disks, NICs: &nics, BootTime: ptr(at("2031-05-06T06:00:00.25Z")),
		}},
		events.VMRemoved{VM: exampleVM},
		events.InventorySynced{Hash: exampleHash, VMs: 12},
		events.TaskRequested{Task: exampleTask, Kind: events.TaskVMPowerOn, VM: exampleVM, Deadline: at("2031-05-06T08:08:09.123456Z")},
		events.TaskAccepted{Task: exampleTask},
		events.TaskProgressed{Task: exampleTask, Percent: 40, Message: "waiting for the host"},
		events.TaskSucceeded{Task: exampleTask, Message: "powered on in 1.2 s"},
		events.TaskFailed{Task: exampleTask, Code: "invalid_state", Message: "The attempted operation cannot be performed in the current state (Powered on)."},
		events.TaskRejected{Task: exampleTask, Code: "read_only", Message: "the licence of this host does not permit changes"},
		events.TaskCancelRequested{Task: exampleTask},
		events.TaskCancelled{Task: exampleTask, Message: "cancelled before it began"},
		events.TaskExpired{Task: exampleTask, Message: "the device did not accept the task before its deadline"},
		events.TaskReportedLate{Task: exampleTask, Status: events.TaskStatusFailed, Code: "interrupted", Message: "the agent was restarted"},
		events.JoinTokenIssued{
			Token: exampleToken, Name: "frankfurt roll-out", MaxUses: 25, Expires: at("2031-06-05T07:08:09Z"),
			AutoApprove: true, Labels: map[string]string{"site": "fra"}, NamePattern: "till-{n}", Device: exampleDevice,
		},
		events.JoinTokenUsed{Device: exampleDevice},
		events.JoinTokenRevoked{},
		events.JoinRefused{Failures: 30, Limit: "source"},
		events.UserCreated{User: exampleUser},
		events.RoleGranted{User: exampleUser, Grant: exampleGrant, Role: events.RoleOperator, Selector: "site=fra"},
		events.RoleRevoked{User: exampleUser, Grant: exampleGrant},
		events.UserDisabled{User: exampleUser, Reason: "left the company"},
		events.UserEnabled{User: exampleUser},
		events.UserDeleted{User: exampleUser},
		events.PasswordChanged{How: events.PasswordFirst},
		events.PasswordResetIssued{Expires: at("2027-02-21T09:30:00Z")},
		events.APITokenIssued{Token: "4f2k9d0a7b1c8e3h", Role: events.RoleViewer, Selector: "site=fra", Expires: at("2027-02-21T09:30:00Z")},
		events.APITokenRevoked{Token: "4f2k9d0a7b1c8e3h"},
		events.APITokenUsed{Token: "4f2k9d0a7b1c8e3h", Network: "203.0.113.7/32"},
		events.SignedIn{Method: events.MethodPassword},
		events.SignInFailed{Method: events.MethodPassword, Reason: "wrong password"},
		events.SessionEnded{Count: 2, Reason: "the password was changed"},
		events.AccessDenied{Operation: "retire-device", Permission: "devices:retire"},
		events.AuthorityPrepared{Active: exampleHash, Next: exampleNext, NotAfter: at("2051-05-06T07:08:09Z"), Since: at("2031-05-06T07:08:09Z")},
		events.AuthoritySwitched{Active: exampleNext, Former: exampleHash, Since: at("2031-05-13T07:08:09Z")},
		events.AuthorityRetired{Active: exampleNext, Former: exampleHash},
		events.AuthorityAdopted{Active: exampleHash},
	}
}

// exampleDecision is a decision with every field set.
func exampleDecision() events.Decision {
	return events.Decision{
		ID: "01976b31-5a0c-7d2e-9f14-6b8c3d2e1f00", Subject: events.InventorySubject(exampleDevice),
		Time: at("2031-05-06T07:08:09.123456Z"), Actor: events.DeviceActor(exampleDevice), Source: "198.51.100.23",
		Cause: exampleHash[:16], Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		Entries: []events.Entry{
			{Event: events.VMRemoved{VM: exampleVM}, DeviceTime: ptr(at("2031-05-06T07:08:01Z")), Report: &events.Report{Epoch: 1936287828, Seq: 4711}},
			{Event: events.Unknown{Name: "VMCloned", Version: 2, Data: []byte(`{"from":"<a&b>","n":1e3}`)}},
		},
	}
}

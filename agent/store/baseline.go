package store

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"go.etcd.io/bbolt"

	"pallas/mqttgw/wire"
)

// Baseline is the inventory as the manager will know it once it has every
// report of the outbox.
type Baseline struct {
	// Complete says that a complete inventory was reported in this epoch.
	// Until then the other fields are empty.
	Complete bool
	Host     wire.Host
	VMs      []wire.VM // sorted by ID
	// Condition is the last one reported, "" for none.
	Condition string
}

// Hash returns the inventory's hash as a Hello tells it, or nil without a
// complete inventory.
func (b Baseline) Hash() []byte {
	if !b.Complete {
		return nil
	}
	return wire.HashInventory(b.Host, b.VMs)
}

// Baseline reads it.
func (s *Store) Baseline() (base Baseline, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		base, err = readBaseline(tx)
		return err
	})
	if err != nil {
		return Baseline{}, fmt.Errorf("read baseline: %w", err)
	}
	return base, nil
}

func readBaseline(tx *bbolt.Tx) (Baseline, error) {
	meta := tx.Bucket(bucketMeta)
	base := Baseline{Complete: meta.Get(keyComplete) != nil, Condition: string(meta.Get(keyCondition))}
	if v := meta.Get(keyHost); v != nil {
		if err := cbor.Unmarshal(v, &base.Host); err != nil {
			return Baseline{}, fmt.Errorf("host: %w", err)
		}
	}
	err := tx.Bucket(bucketVMs).ForEach(func(k, v []byte) error {
		var vm wire.VM
		if err := cbor.Unmarshal(v, &vm); err != nil {
			return fmt.Errorf("virtual machine %q: %w", k, err)
		}
		base.VMs = append(base.VMs, vm)
		return nil
	})
	return base, err
}

// SetHost changes the baseline's host.
func (t *Tx) SetHost(h wire.Host) error { return put(t.tx.Bucket(bucketMeta), keyHost, h) }

// PutVM adds a machine to the baseline, or replaces it.
func (t *Tx) PutVM(vm wire.VM) error { return put(t.tx.Bucket(bucketVMs), []byte(vm.ID), vm) }

// DeleteVM takes a machine out of the baseline.
func (t *Tx) DeleteVM(id string) error { return t.tx.Bucket(bucketVMs).Delete([]byte(id)) }

// SetCondition changes the baseline's condition.
func (t *Tx) SetCondition(c string) error {
	return putIfNew(t.tx.Bucket(bucketMeta), keyCondition, []byte(c))
}

// SetComplete says that a complete inventory is in the outbox.
func (t *Tx) SetComplete() error { return putIfNew(t.tx.Bucket(bucketMeta), keyComplete, []byte{1}) }

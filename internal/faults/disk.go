package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Fault is what a disk does instead of its work. The zero Fault is a good disk.
type Fault struct {
	// Read, Write and Sync are the errors of these calls, 0 for none. Write is
	// that of all that changes names or sizes, too.
	Read, Write, Sync syscall.Errno
	// Free is how many bytes statfs tells to be free; negative means the truth.
	// With Write it makes the difference between a disk that is full and one
	// that has just become so.
	Free int64
	// Delay is how long each read, write and sync takes at least.
	Delay time.Duration
}

// Faults that disks have.
var (
	Good     = Fault{Free: -1}
	Full     = Fault{Write: unix.ENOSPC}
	Low      = Fault{Free: 1 << 20}                // nearly full
	Filling  = Fault{Write: unix.ENOSPC, Free: -1} // full before anybody could look
	ReadOnly = Fault{Write: unix.EROFS, Sync: unix.EROFS, Free: -1}
	BadWrite = Fault{Write: unix.EIO, Free: -1}
	BadRead  = Fault{Read: unix.EIO, Free: -1}
	BadSync  = Fault{Sync: unix.EIO, Free: -1}
	Slow     = Fault{Delay: 20 * time.Millisecond, Free: -1}
)

// Disk is a folder seen through a file system that can fail. Everything goes
// through to the folder at once; what a power cut would take is known, too.
type Disk struct {
	dir    string
	back   string
	server *fuse.Server
	fault  atomic.Pointer[Fault]

	mu     sync.Mutex
	synced map[string]mark // by path in the folder
}

// mark is what a file's last sync made safe.
type mark struct {
	size  int64
	began time.Time // of the sync: all that was written before is safe
}

// Mount shows the folder back at dir. Both must exist. The process that mounts
// must not use dir itself: a program that waits for its own answers may wait
// for good.
func Mount(back, dir string) (*Disk, error) {
	loop, err := fs.NewLoopbackRoot(back)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", back, err)
	}
	inner, ok := loop.(*fs.LoopbackNode)
	if !ok {
		return nil, fmt.Errorf("mount %s: the root is a %T", back, loop)
	}
	d := &Disk{dir: dir, back: back, synced: make(map[string]mark)}
	d.Set(Good)
	second := time.Second
	d.server, err = fs.Mount(dir, &node{inner, d}, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "faults", Name: "faults", MaxWrite: 1 << 20},
		AttrTimeout:  &second, EntryTimeout: &second,
	})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	return d, nil
}

// Set changes what the disk does, from now on.
func (d *Disk) Set(f Fault) { d.fault.Store(&f) }

// Unmount ends it. Nobody may have files open there.
func (d *Disk) Unmount() error { return d.server.Unmount() }

// PowerCut takes from the files that match the pattern (as of
// [filepath.Glob], in the folder) what no sync had made safe, and returns when
// the sync began before which everything is safe. keep says how many of a
// file's n unsafe bytes, 1 or more, had reached the disk all the same. Nobody
// may have the files open.
func (d *Disk) PowerCut(pattern string, keep func(n int64) int64) (safe time.Time, lost int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	paths, err := filepath.Glob(filepath.Join(d.back, pattern))
	if err != nil {
		return safe, 0, fmt.Errorf("cut the power: %w", err)
	}
	for _, path := range paths {
		m := d.synced[path]
		info, err := os.Stat(path)
		if err != nil {
			return safe, lost, fmt.Errorf("cut the power: %w", err)
		}
		if m.began.After(safe) {
			safe = m.began
		}
		if info.Size() <= m.size {
			continue
		}
		size := m.size + keep(info.Size()-m.size)
		if err := os.Truncate(path, size); err != nil {
			return safe, lost, fmt.Errorf("cut the power: %w", err)
		}
		lost += info.Size() - size
	}
	return safe, lost, nil
}

// Synced says that all of the folder's files are safe as they are: for those
// that were there before.
func (d *Disk) Synced() error {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	return filepath.WalkDir(d.back, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		d.synced[path] = mark{info.Size(), now}
		return nil
	})
}

// do waits out the disk's slowness and returns the chosen error.
func (d *Disk) do(ctx context.Context, choose func(*Fault) syscall.Errno) syscall.Errno {
	f := d.fault.Load()
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return choose(f)
}

func reading(f *Fault) syscall.Errno { return f.Read }
func writing(f *Fault) syscall.Errno { return f.Write }
func syncing(f *Fault) syscall.Errno { return f.Sync }

// freeing is writing, but for what a full disk permits.
func freeing(f *Fault) syscall.Errno {
	if f.Write == unix.ENOSPC {
		return 0
	}
	return f.Write
}

// node is a file or a folder.
type node struct {
	*fs.LoopbackNode
	disk *Disk
}

// WrapChild has every node of the tree be one of ours.
func (n *node) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	if inner, ok := child.(*fs.LoopbackNode); ok {
		return &node{inner, n.disk}
	}
	return child
}

func (n *node) path() string { return filepath.Join(n.disk.back, n.Path(n.Root())) }

func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	errno := n.LoopbackNode.Statfs(ctx, out)
	if f := n.disk.fault.Load(); f.Free >= 0 && out.Bsize > 0 {
		free := uint64(f.Free) / uint64(out.Bsize)
		out.Bavail, out.Bfree = free, free
	}
	return errno
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f := n.disk.fault.Load()
	if f.Write == unix.EROFS && flags&(unix.O_WRONLY|unix.O_RDWR|unix.O_TRUNC) != 0 {
		return nil, 0, f.Write
	}
	fh, ff, errno := n.LoopbackNode.Open(ctx, flags)
	return n.wrap(fh, n.path()), ff, errno
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.do(ctx, writing); errno != 0 {
		return nil, nil, 0, errno
	}
	inode, fh, ff, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.wrap(fh, filepath.Join(n.path(), name)), ff, errno
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.disk.do(ctx, writing); errno != 0 {
		return nil, errno
	}
	return n.LoopbackNode.Mkdir(ctx, name, mode, out)
}

func (n *node) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to, ok := parent.(*node)
	if !ok {
		return unix.EXDEV
	}
	if errno := n.disk.do(ctx, freeing); errno != 0 {
		return errno
	}
	errno := n.LoopbackNode.Rename(ctx, name, to.LoopbackNode, newName, flags)
	if errno == 0 {
		n.disk.renamed(filepath.Join(n.path(), name), filepath.Join(to.path(), newName))
	}
	return errno
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if errno := n.disk.do(ctx, freeing); errno != 0 {
		return errno
	}
	n.disk.renamed(filepath.Join(n.path(), name), "")
	return n.LoopbackNode.Unlink(ctx, name)
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	if errno := n.disk.do(ctx, freeing); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Rmdir(ctx, name)
}

func (n *node) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	choose := freeing
	if size, ok := in.GetSize(); ok {
		if info, err := os.Stat(n.path()); err == nil && int64(size) > info.Size() {
			choose = writing
		}
	}
	if errno := n.disk.do(ctx, choose); errno != 0 {
		return errno
	}
	if f, ok := fh.(*file); ok {
		fh = f.loopback
	}
	return n.LoopbackNode.Setattr(ctx, fh, in, out)
}

func (n *node) Getattr(ctx context.Context, fh fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if f, ok := fh.(*file); ok {
		fh = f.loopback
	}
	return n.LoopbackNode.Getattr(ctx, fh, out)
}

func (d *Disk) renamed(from, to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.synced[from]; ok && to != "" {
		d.synced[to] = m
	}
	delete(d.synced, from)
}

func (n *node) wrap(fh fs.FileHandle, path string) fs.FileHandle {
	if l, ok := fh.(*fs.LoopbackFile); ok {
		return &file{loopback: l, disk: n.disk, path: path}
	}
	return fh
}

// file is an open file. It offers less than a LoopbackFile: with that one's
// descriptor the kernel would go past the faults, and locks are the kernel's
// own, as the one process that opens the files needs.
type file struct {
	loopback *fs.LoopbackFile
	disk     *Disk
	path     string
}

func (f *file) Read(ctx context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if errno := f.disk.do(ctx, reading); errno != 0 {
		return nil, errno
	}
	return f.loopback.Read(ctx, buf, off)
}

func (f *file) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if errno := f.disk.do(ctx, writing); errno != 0 {
		return 0, errno
	}
	return f.loopback.Write(ctx, data, off)
}

func (f *file) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	began := time.Now()
	info, err := os.Stat(f.path)
	if errno := f.disk.do(ctx, syncing); errno != 0 {
		return errno
	}
	errno := f.loopback.Fsync(ctx, flags)
	if errno == 0 && err == nil {
		f.disk.mu.Lock()
		f.disk.synced[f.path] = mark{info.Size(), began}
		f.disk.mu.Unlock()
	}
	return errno
}

func (f *file) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	if errno := f.disk.do(ctx, writing); errno != 0 {
		return errno
	}
	return f.loopback.Allocate(ctx, off, size, mode)
}

func (f *file) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	return f.loopback.Lseek(ctx, off, whence)
}

func (f *file) Flush(ctx context.Context) syscall.Errno   { return f.loopback.Flush(ctx) }
func (f *file) Release(ctx context.Context) syscall.Errno { return f.loopback.Release(ctx) }

// ErrNoFUSE says that this machine cannot mount a [Disk].
var ErrNoFUSE = errors.New("no /dev/fuse, or no right to mount")

// Available returns ErrNoFUSE when no Disk can be mounted here. dir is an empty
// folder to try it on.
func Available(dir string) error {
	back := filepath.Join(dir, "back")
	at := filepath.Join(dir, "at")
	if err := errors.Join(os.Mkdir(back, 0o700), os.Mkdir(at, 0o700)); err != nil {
		return err
	}
	d, err := Mount(back, at)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoFUSE, err)
	}
	return d.Unmount()
}

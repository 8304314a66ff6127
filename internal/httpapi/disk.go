package httpapi

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// DiskCheck returns the readiness of the disk that holds a folder: at least
// minFree bytes are free there.
func DiskCheck(dir string, minFree uint64) Check {
	return Check{Name: "disk", Run: func(context.Context) (string, error) {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			return "", fmt.Errorf("look at the disk: %w", err)
		}
		free := s.Bavail * uint64(s.Bsize)
		detail := fmt.Sprintf("%d MiB free", free>>20)
		if free < minFree {
			return "", fmt.Errorf("%s, at least %d MiB are needed", detail, minFree>>20)
		}
		return detail, nil
	}}
}

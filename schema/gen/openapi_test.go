package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestOpenAPIDrift(t *testing.T) {
	files, err := openAPI()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 {
		t.Fatalf("%d files, want 2", len(files))
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("schema/%s is not what the code says: run go run ./schema/gen", name)
		}
	}
}

package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"hash/crc32"
	"strings"
)

// TokenPrefix starts every API token, so that people and secret scanners
// recognise one.
const TokenPrefix = "pls_"

const (
	idBytes     = 10
	secretBytes = 32
	idChars     = idBytes * 8 / 5
)

var enc = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// newToken returns a token "pls_<id>_<secret><checksum>" and its id. The
// checksum (CRC-32 of the rest) lets a scanner tell a token from noise; it
// protects nothing.
func newToken() (id, token string) {
	id = enc.EncodeToString(random(idBytes))
	body := TokenPrefix + id + "_" + enc.EncodeToString(random(secretBytes))
	return id, body + checksum(body)
}

// idOf returns the id of a well-formed token, or "".
func idOf(token string) string {
	sumLen := len(checksum(""))
	if len(token) != len(TokenPrefix)+idChars+1+enc.EncodedLen(secretBytes)+sumLen || !strings.HasPrefix(token, TokenPrefix) {
		return ""
	}
	if body := token[:len(token)-sumLen]; checksum(body) != token[len(body):] {
		return ""
	}
	id := token[len(TokenPrefix) : len(TokenPrefix)+idChars]
	if _, err := enc.DecodeString(id); err != nil || token[len(TokenPrefix)+idChars] != '_' {
		return ""
	}
	return id
}

func checksum(s string) string {
	return enc.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(s))))
}

func hash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return b
}

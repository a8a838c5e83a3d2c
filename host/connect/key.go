package connect

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
)

// keys derives session keys. None is stored: every host with the same secret and the same records derives the same ones.
type keys struct {
	secret []byte
	// tell, if it is not nil, is told every key before it is used.
	tell func(key string)
}

// of returns the key that opens the server in a session's sandbox. Each sandbox has a generation of its own, so that the
// key of one that is gone opens nothing. A sandbox without a generation was made by a berth that knew none; it keeps the
// key it has, because whoever works in it has been told that key.
func (k keys) of(owner, session, generation string) string {
	derived := "berth session key\x00" + session
	if generation != "" {
		derived = "berth session key\x00" + owner + "\x00" + session + "\x00" + generation
	}
	mac := hmac.New(sha256.New, k.secret)
	mac.Write([]byte(derived))
	key := hex.EncodeToString(mac.Sum(nil))
	if k.tell != nil {
		k.tell(key)
	}
	return key
}

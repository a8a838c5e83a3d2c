package connect

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"

	"github.com/berth-dev/berth/shared/provider"
)

func sessionKey(secret []byte, session string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("berth session key\x00" + session))
	return hex.EncodeToString(mac.Sum(nil))
}

// addKeyToEnv returns the server with the key in the variables in which it expects it.
func addKeyToEnv(server provider.Server, variables []string, key string) provider.Server {
	server.Env = maps.Clone(server.Env)
	if server.Env == nil {
		server.Env = map[string]string{}
	}
	for _, name := range variables {
		server.Env[name] = key
	}
	return server
}

// addKeyToHeaders returns the endpoints with the key in that header, those of extra ports too: they are served by the
// same server. Without a header there is no key.
func addKeyToHeaders(endpoints provider.Endpoints, header, key string) provider.Endpoints {
	if header == "" {
		return endpoints
	}
	add := func(e provider.Endpoint) provider.Endpoint {
		headers := maps.Clone(e.Headers)
		if headers == nil {
			headers = map[string]string{}
		}
		headers[header] = key
		e.Headers = headers
		return e
	}
	keyed := provider.Endpoints{Server: add(endpoints.Server)}
	for name, extra := range endpoints.Extra {
		if keyed.Extra == nil {
			keyed.Extra = map[string]provider.Endpoint{}
		}
		keyed.Extra[name] = add(extra)
	}
	return keyed
}

server {
  preset = "custom"
  ports  = { code = 4444, web = 4444 }
}

provider "acme" {
  server {
    command    = ["serve", "{port.cod}"]
    port       = 4444
    key_header = "X-Key"
  }
}

provider "acme-eu" {
  plugin = "acme"
  server {
    preset = "openhands"
    port   = 4443
    env    = { SESSION_API_KEY = "canary-of-my-own" }
  }
}

provider "acme-us" {
  plugin = "acme"
}

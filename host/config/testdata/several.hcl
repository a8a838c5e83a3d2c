host {
  log_levle = "debug"
}

server {
  preset = "openhand"
}

health {
  timeout  = "120"
  interval = "0s"
}

provider "acme" {
  sha256 = env("ACME_SHA_UNSET")
  config {
    api_key = file("no/such/key")
    size    = "gigantic"
    zones   = "eu"
  }
}

provider "acme" {
  mtls = 3
}

network {
}

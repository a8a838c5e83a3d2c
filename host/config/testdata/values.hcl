host {
  provider  = "daytnoa"
  owner     = "-"
  secret    = "canary-short"
  log_level = "verbose"
}

server {
  preset       = "agent-sever"
  port         = 70000
  ports        = { "Bad Name" = 1 }
  health_paths = ["ready"]
  key_env      = ["NOT-A-NAME"]
  key_header   = "X Key"
  env          = { "1X" = "canary-env" }
}

health {
  ramp = "of"
}

provider "daytona" {
  plugin = "acme"
  sha256 = "1234"
  labels = { berth-owner = "me" }
  config {
    api_key = "canary-key"
    size    = "lage"
  }
}

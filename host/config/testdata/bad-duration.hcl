health {
  timeout       = "two minutes"
  interval      = "0s"
  probe_timeout = "-5s"
}

timeouts {
  total = 600
  undo  = "48h"
}

provider "acme" {
  start_timeout = "1ms"
  lifetime      = ""
  config {
    api_key = "canary-key"
    idle    = "soon"
  }
}

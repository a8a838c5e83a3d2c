provider "acme" {
  config {
    api_key = 12345678
    size    = "lrage"
    idle    = "-1h"
    count   = "three"
    regoin  = "eu"
    account {
      name = "canary-in-a-block"
    }
  }
}

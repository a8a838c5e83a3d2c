provider "acme" {
  config {
    api_key = "canary-in-an-open-block"

provider "local" {}

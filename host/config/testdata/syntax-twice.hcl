provider "acme" {
  config {
    api_key = "canary-once"
    api_key = "canary-twice"
  }
}

provider "acme" {
  config {
    api_key: "canary-after-a-colon" # canary in a comment
    region "canary-as-a-label"
  }
}

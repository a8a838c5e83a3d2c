provider "acme" {
  config {
    api_key = 'canary-in-single-quotes'
  }
}

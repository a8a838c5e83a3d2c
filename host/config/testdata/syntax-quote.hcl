provider "acme" {
  config {
    api_key = "canary-never-closed
    region  = "eu"
  }
}

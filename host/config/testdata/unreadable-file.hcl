provider "acme" {
  config {
    api_key = file("no/such/file")
    region  = file(".")
  }
}

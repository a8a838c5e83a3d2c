host {
  secret = "${env("BERTH_SECRET)}"
}
provider "acme" {
  config {
    api_key = "sk-live-0123456789"
  }
}

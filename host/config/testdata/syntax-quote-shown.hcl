host {
  log_level = "warn
}

provider "acme" {
  config {
    api_key = "sk-live-0123456789"
  }
}
